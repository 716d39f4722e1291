"""The command that upcycles: what it prints and leaves, and what it says of everything that cannot be done."""

import dataclasses
import json
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path

import pytest
from safetensors.torch import load_file

import mocomp.nn
from mocomp import checkpoints as commands
from mocomp.commands import upcycle as upcycling
from mocomp.errors import Usage
from mocomp.models.source import open_source
from mocomp.options import UpcycleOptions
from mocomp.plans.plan import ModelPlan
from mocomp.report import RECEIPT
from mocomp.resources import Resources

SMALL = {"num_hidden_layers": 1}
IMAGES = ("--groups", "text=2,image=2", "--modality", "image=40..49")


@pytest.fixture
def upcycle(command, checkpoint, tmp_path):
    """upcycle(*arguments): the command on a small llama, into tmp_path / "out"."""

    def run(*arguments: object, source: Path | str | None = None):
        return command("upcycle", source or checkpoint("llama", **SMALL), "-o", tmp_path / "out", *arguments)

    return run


@pytest.fixture
def refused(upcycle, tmp_path):
    """refused(*arguments): a failure, of which nothing may be left."""

    def run(*arguments: object, source: Path | str | None = None):
        before = sorted(tmp_path.iterdir())
        done = upcycle(*arguments, source=source)
        assert done.out == "" and "Traceback" not in done.err and done.code not in (0, 70)
        assert sorted(tmp_path.iterdir()) == before
        return done

    return run


@pytest.fixture(scope="module")
def dense(checkpoint):
    """The small llama, opened once."""
    with commands.opened(str(checkpoint("llama", **SMALL)), UpcycleOptions()) as opened:
        yield opened


def test_what_is_made_and_said(upcycle, tmp_path):
    done = upcycle(*IMAGES, "--top-k", 2)
    assert done.code == 0 and "Traceback" not in done.err
    first, parameters, loads, verdict, *notes, place = done.out.splitlines()
    assert first == "upcycle: LlamaForCausalLM, 1 mixtures of 4 experts in all"
    assert parameters.split() == ["parameters", "0.05", "M", "before,", "0.10", "M", "now"]
    assert loads == "  loads as mocomp.nn.load" and verdict.startswith("  function preserved: outputs differ by ")
    assert all(note.startswith("  note: ") for note in notes) and place == str(tmp_path / "out")
    assert "proof: running the original and the new model" in done.err  # progress is no result
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        RECEIPT,
    ]
    model = mocomp.nn.load(tmp_path / "out")
    assert model.mocomp_plan.modality.ranges == ((), ((40, 49),))
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert stored.keys() == model.state_dict().keys()  # nothing of the blocks that were replaced is left


def test_json_is_all_that_standard_output_holds(upcycle, tmp_path):
    options = {"groups": "text=2,image=2", "modality": ["image=40..49"], "noise": 0, "seed": 3, "router_init": "zero"}
    (tmp_path / "options.json").write_text(json.dumps(options))
    done = upcycle("--config", tmp_path / "options.json", "--seed", 4, "--noise", 0.2, "--json")
    receipt = json.loads(done.out)
    assert done.code == 0 and done.out.count("\n") == 1
    assert receipt == json.loads((tmp_path / "out" / RECEIPT).read_text())
    told = receipt["options"]
    assert (told["seed"], told["noise"], told["router_init"]) == (4, 0.2, "zero")  # the command line wins
    assert receipt["moved"] > 1e-3 and receipt["kl"] > 0 and receipt["changes"].startswith("experts were disturbed")
    assert (receipt["mixtures"], receipt["experts"], receipt["command"]) == (1, 4, "upcycle")
    assert receipt["parameters"] > receipt["parameters_before"] and receipt["model"] == "LlamaForCausalLM"
    assert ModelPlan.from_json(receipt["plan"], "receipt") == mocomp.nn.load(tmp_path / "out").mocomp_plan


PROVEN = {
    "an input of its own": ["--modality", "image=modality_ids:1"],
    "tokens that have a modality": ["--modality", "image=40..49", "--modality", "text=50..60", "--otherwise", "error"],
    "positions that have one": [
        "--modality",
        "image=position:0..7",
        "--modality",
        "text=position:8..20",
        "--otherwise",
        "error",
    ],
}


@pytest.mark.parametrize("name", PROVEN)
def test_is_proven_on_tokens_that_it_takes(upcycle, name, dense, monkeypatch):
    """Where those without a modality are an error, on the others."""
    monkeypatch.setattr(upcycling, "opened", lambda *rest: nullcontext(dense))
    done = upcycle("--groups", "text=2,image=2", *PROVEN[name])
    assert done.code == 0 and "function preserved" in done.out


def test_towers_have_experts_of_their_own(command, checkpoint, tmp_path):
    done = command(
        "upcycle", checkpoint("clip", **SMALL), "-o", tmp_path / "out", "--groups", "text=2,image=3",
        "--modality", "image=tower:vision_model", "--parity", "off", "--json",
    )  # fmt: skip
    mixtures = json.loads(done.out)["plan"]["mixtures"]
    assert {mixture["enter"].split("_")[0]: mixture["groups"] for mixture in mixtures} == {
        "text": [["text", 2]],
        "vision": [["image", 3]],
    }


def test_files_of_the_tokenizer_come_along_and_shards_are_cut(upcycle, checkpoint, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for path in checkpoint("llama", **SMALL).iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    (source / "tokenizer.json").write_text("{}")
    (source / "notes.txt").write_text("mine")
    assert upcycle("--parity", "off", "--shard-size", "100KB", "--groups", "2", source=source).code == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"tokenizer.json", "model.safetensors.index.json"} <= names and "notes.txt" not in names


def test_an_earlier_one_is_replaced_when_it_is_asked_for(upcycle, tmp_path, dense, monkeypatch):
    monkeypatch.setattr(upcycling, "opened", lambda *rest: nullcontext(dense))
    first = upcycle("--parity", "off", "--groups", "2")
    again = upcycle("--parity", "off", "--groups", "3")
    assert (first.code, again.code) == (0, 5) and "it exists already" in again.err and "--force" in again.err
    forced = upcycle("--parity", "off", "--groups", "3", "--force", "--json")
    assert json.loads(forced.out)["experts"] == 3
    (tmp_path / "out" / RECEIPT).unlink()
    assert upcycle("--parity", "off", "--force").code == 5  # not ours any more


def test_a_claim_that_does_not_hold_keeps_nothing(refused, monkeypatch):
    monkeypatch.setattr(commands, "PRESERVED", 0.0)
    done = refused(*IMAGES, "--top-k", 2)
    assert done.code == 1 and "was to preserve the function, and an output moved by" in done.err


def test_what_cannot_be_loaded_is_told_although_it_is_not_proven(refused, checkpoint):
    done = refused("--depth", "all", "--parity", "off", "--groups", "2", source=checkpoint("bert", **SMALL))
    assert done.code == 3 and "mixture-of-depths needs" in done.err


REFUSED = {
    "groups in words": (("--groups", "many"), 2, "groups 'many'"),
    "no experts": (("--groups", "0"), 2, "groups '0'"),
    "a group twice": (("--groups", "a=2,a=2"), 2, "groups 'a=2,a=2'"),
    "a group without a number": (("--groups", "a=2,b"), 2, "groups 'a=2,b'"),
    "groups that nothing tells apart": (("--groups", "text=2,image=2"), 2, "tell all modalities by one thing"),
    "one group and a modality": (("--modality", "image=4..5"), 2, "--modality with one group"),
    "one group and a rest": (("--otherwise", "text"), 2, "--otherwise with one group"),
    "a modality of no group": ((*IMAGES, "--modality", "audio=4..5"), 2, "names 'audio'"),
    "ids beyond the vocabulary": (("--groups", "a=2,b=2", "--modality", "a=4..900"), 2, "beyond the vocabulary of 128"),
    "ids of the config": (("--groups", "text=2,image=2", "--modality", "image=config"), 2, "config.json does not say"),
    "towers that are none": (
        ("--groups", "a=2,b=2", "--modality", "a=tower:vision", "--modality", "b=tower:text_model", "--otherwise", "error"),
        2,
        "is in no tower",
    ),
    "more than there are": (("--groups", "2", "--top-k", 3), 2, "--top-k 3"),
    "slices that do not fit": (("--granularity", 5), 2, "--granularity 5 does not divide"),
    "no such router": (("--router", "oracle"), 2, "no router 'oracle'"),
    "later tokens": (("--router", "expert_choice"), 2, "depend on later tokens"),
    "an auxiliary router for nothing": (("--auxiliary", 4), 2, "router softmax_topk is causal itself"),
    "a width below 0": (("--auxiliary", -4), 2, "auxiliary is less than 0"),
    "noise below 0": (("--noise", -0.1), 2, "noise is less than 0"),
    "noise that is no number": (("--noise", "nan"), 2, "noise is less than 0, or no number"),
    "a seed below 0": (("--seed", -1), 2, "seed is -1, and less than 0"),
    "more than all": (("--redraw", 1.5), 2, "redraw is 1.5, expected a share"),
    "a layer too far": (("--layers", "0,1"), 2, "--layers 0,1: the model has blocks 0 to 0"),
    "a layer before the first": (("--layers=-1",), 2, "--layers -1: the model has blocks"),
    "layers in words": (("--layers", "some"), 2, "--layers some: the model has blocks"),
    "layers the wrong way round": (("--layers", "1..0"), 2, "--layers 1..0: the model has blocks"),
    "no layer at all": (("--layers", "every:2"), 2, "--layers every:2: the model has blocks"),
    "every zeroth": (("--layers", "every:0"), 2, "--layers every:0"),
    "depth too far": (("--depth", "3"), 2, "--depth 3: the model has blocks"),
    "a size in words": (("--shard-size", "big"), 2, "shard size 'big'"),
    "a size of nothing": (("--shard-size", "0GB"), 2, "shard size '0GB'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_meant_is_refused(refused, name, dense, monkeypatch):
    monkeypatch.setattr(upcycling, "opened", lambda *rest: nullcontext(dense))
    arguments, code, message = REFUSED[name]
    done = refused(*arguments)
    assert done.code == code and message in done.err


def test_a_task_that_there_is_not(refused):
    done = refused("--task", "divination")
    assert done.code == 2 and "no task 'divination'" in done.err


def test_a_source_that_is_not_there(refused, tmp_path):
    done = refused(source=tmp_path / "typo")
    assert done.code == 5 and "no such directory" in done.err


def test_a_source_with_mixtures_of_ours(refused, upcycled):
    source = upcycled("llama", source=tuple(SMALL.items()))
    done = refused(source=source)
    assert done.code == 3 and f"{source}: it has mixtures of mocomp already" in done.err and "mocomp extend" in done.err


def test_a_source_without_a_dense_block(refused, checkpoint):
    done = refused(source=checkpoint("mixtral", **SMALL))
    assert done.code == 3 and "no dense feed-forward block was found in it" in done.err


def test_an_output_that_exists(command, checkpoint, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    for force in ((), ("--force",)):
        done = command("upcycle", checkpoint("llama", **SMALL), "-o", tmp_path / "out", *force)
        assert done.code == 5 and [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"group": "4"}', "unknown option 'group'"),
        ('{"groups": 4}', "groups is 4, expected str"),
        ('{"modality": [3]}', r"modality is \[3\], expected"),
        ('{"modality": "image=4"}', "modality is 'image=4', expected tuple"),
        ('{"noise": "loud"}', "noise is 'loud', expected float"),
        ('{"noise": true}', "noise is True, expected float"),
        ('{"capacity": 2}', "capacity is 2"),
        ('{"layout": "any"}', "layout is 'any', expected one of auto, stock, mocomp"),
    ],
)
def test_a_file_of_options_that_cannot_be_meant(tmp_path, content, message):
    (tmp_path / "options.json").write_text(content)
    with pytest.raises(Usage, match=message) as caught:
        UpcycleOptions.read(tmp_path / "options.json")
    assert caught.value.where == str(tmp_path / "options.json") and caught.value.exit_code == 2


def test_a_file_may_say_whole_numbers_for_shares(tmp_path):
    (tmp_path / "options.json").write_text('{"noise": 0, "capacity": 1, "modality": ["a=1", "b=2"]}')
    options = UpcycleOptions.read(tmp_path / "options.json")
    assert (options.noise, options.capacity, options.modality) == (0.0, 1.0, ("a=1", "b=2"))
    assert type(options.noise) is float


def test_sizes_of_shards():
    sizes = {"5GB": 5_000_000_000, "500 MB": 500_000_000, "1.5KB": 1500, "7B": 7, "1TB": 10**12}
    assert {size: UpcycleOptions(shard_size=size).shard_bytes() for size in sizes} == sizes


def test_which_blocks_are_chosen():
    blocks = list("abcdef")
    expected = {
        "all": "abcdef",
        "every:2": "bdf",
        "every:3": "cf",
        "0": "a",
        "4,0..2": "abce",
        "1..3,2..4": "bcde",
        "5..5": "f",
    }
    assert {layers: "".join(commands.chosen(blocks, layers)) for layers in expected} == expected


def test_options_of_the_command_are_options_of_the_file():
    from mocomp.cli.checkpoints import upcycle

    here = {"source", "output", "config", "as_json", "target"}
    files = {field.name for field in (*fields(UpcycleOptions), *fields(Resources))}
    assert {parameter.name for parameter in upcycle.params} - here == files


def test_what_is_written_opens_as_the_same_model(upcycled, checkpoint):
    """Its config is the source's, under another name, and nothing that tracing set stays in it."""
    source, made = (open_source(str(path)) for path in (checkpoint("llama"), upcycled("llama")))
    assert made.model_class is source.model_class and source.plan is None is not made.plan
    assert made.config.to_diff_dict() == source.config.to_diff_dict() | {"architectures": ["LlamaForCausalLM"]}
    assert dataclasses.asdict(made.plan)["modality"] is None
