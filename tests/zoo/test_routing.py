"""The zoo's mechanisms of routing, each in its host, convert and are proven at sizes other than the traced.

Here every file of mechanisms is converted in every host that it has, to the two targets in turn, and the others are looked at
without converting them; `mocomp zoo run` converts all to both.
"""

import pytest
import torch

from mocomp.commands.zoo import LARGEST, TARGETS, line_of
from mocomp.models.user.loading import look
from mocomp.models.user.source import from_module
from mocomp.options import ConvertOptions
from mocomp.pipeline import convert
from mocomp.report.zoo import PASSED
from mocomp.zoo import Entry, build, dynamic, example
from mocomp.zoo.entries import ENTRIES, ROUTING
from mocomp.zoo.hosts import attention, state_space


def shallow(entry):
    """Its model with one layer where that is all that its mechanism needs: half the graph, half the time."""
    model = build(entry)
    if isinstance(getattr(model, "layers", None), torch.nn.ModuleList) and "state" not in model.layers[0].mixture.names:
        model.layers = model.layers[:1]
    return model


CONVERTED = list({(entry.mechanism.partition(":")[0], entry.host): entry for entry in ROUTING}.values())
OTHERS = [entry for entry in ROUTING if entry not in CONVERTED]


def named(entries):
    return {"argvalues": list(enumerate(entries)), "ids": [entry.name for entry in entries]}


def kinds(source):
    """What was recognised in a module, as the table tells it."""
    found = look(source).recognition.blocks
    return {f"{block.router.name if block.router else block.how} + {block.expert.name}" for block in found}


@pytest.mark.parametrize(("i", "entry"), **named(CONVERTED))
def test_converts(i, entry, tmp_path):
    source = from_module(shallow(entry), example(entry), dynamic(entry), entry.name)
    report = convert(source, tmp_path / "out", ConvertOptions(target=TARGETS[i % 2]))
    assert report.parity.passed and 0 < report.parity.worst < LARGEST / 10
    assert len(report.parity.cases) > 1  # sizes other than the traced
    assert kinds(source) == ({entry.recognised} if entry.recognised else set())


@pytest.mark.parametrize(("_", "entry"), **named(OTHERS))
def test_is_recognised(_, entry):
    source = from_module(shallow(entry), example(entry), dynamic(entry), entry.name)
    assert kinds(source) == ({entry.recognised} if entry.recognised else set())


def test_names_are_told_apart():
    assert len(ENTRIES) >= len(ROUTING) > 40 and all(entry.paper for entry in ENTRIES.values())


def test_weights_are_those_of_the_seed():
    entry = ENTRIES["hash"]
    first, again, other = (build(entry, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    table = "layers.0.mixture.mechanism.table"
    assert not torch.equal(first[table], other[table])
    assert not torch.equal(first["embed.weight"], other["embed.weight"])


def test_inputs_are_those_that_are_wanted():
    wants, does_not = ENTRIES["task_level"], ENTRIES["switch"]
    assert set(example(wants)) - set(example(does_not)) == {"task"}
    assert dynamic(does_not) == {"input_ids": ("batch", "sequence"), "decoder_input_ids": ("batch", "target")}
    assert example(wants, batch=4, target=6)["decoder_input_ids"].shape == (4, 6)


def test_an_example_shows_the_whole_range():
    ids = example(ENTRIES["hash"])["input_ids"]
    assert (ids.min(), ids.max()) == (0, 63)


@pytest.mark.parametrize("name", ["softmax_topk", "modality_groups", "switch_state_space"])
def test_hosts_are_causal(name):
    model, given = build(ENTRIES[name]), example(ENTRIES[name], sequence=6)
    changed = {key: torch.cat([value[:, :4], value[:, 4:].flip(0)], 1) for key, value in given.items()}
    before, after = model(**given), model(**changed)
    torch.testing.assert_close(after[:, :4], before[:, :4])
    assert (after[:, 4:] - before[:, 4:]).abs().max() > 0.1


def test_padding_is_not_seen():
    model, given = build(ENTRIES["adaptive_gap"]), example(ENTRIES["adaptive_gap"], sequence=6)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]] * 2)
    other = given["input_ids"].clone()
    other[:, 4:] = 7
    torch.testing.assert_close(model(other, mask), model(given["input_ids"], mask))
    assert (model(other, mask) - model(given["input_ids"], torch.ones_like(mask))).abs().max() > 0.01


def test_positions_turn_and_nothing_else():
    x = torch.randn(1, 4, 5, 8)
    angles = attention.rotary_angles(torch.zeros(1, 5, 32))
    turned = attention.rotate(x, angles)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    same = x[:, :, :1].expand_as(x)
    products = attention.rotate(same, angles) @ attention.rotate(same, angles).transpose(-1, -2)
    torch.testing.assert_close(products.diagonal(1, -2, -1), products[..., :1, 1].expand(-1, -1, 4))  # distances alone count


def test_dual_form_is_the_recurrence():
    torch.manual_seed(0)
    x, step = torch.randn(2, 6, 4, 3, dtype=torch.float64), torch.rand(2, 6, 4, dtype=torch.float64)
    decay = -torch.rand(4, dtype=torch.float64)
    b, c = torch.randn(2, 2, 6, 8, dtype=torch.float64)
    state, answers = torch.zeros(2, 4, 3, 8, dtype=torch.float64), []
    for t in range(6):
        grown = (step[:, t, :, None] * x[:, t])[..., None] * b[:, t, None, None]
        state = state * (step[:, t] * decay).exp()[..., None, None] + grown
        answers.append((state * c[:, t, None, None]).sum(-1))
    torch.testing.assert_close(state_space.scan(x, step, decay, b, c), torch.stack(answers, 1))


def test_a_wrong_line_is_told(tmp_path):
    entry = ENTRIES["soft_slots"]
    wrong = Entry(entry.name, entry.host, entry.mechanism, entry.paper, recognised="top_p + ffn")
    on = line_of(wrong, ["onnx"], tmp_path).targets["onnx"]
    assert on.verdict != PASSED and "it is top_p + ffn" in on.why
