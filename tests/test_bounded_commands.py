"""Models whose weights stay on disk, and blocks that are proven alone: the same numbers, and faults that are caught."""

import json

import numpy as np
import pytest
import torch

from mocomp import checkpoints as making
from mocomp.commands.carve import carve
from mocomp.commands.densify import densify
from mocomp.commands.evaluate import EvalOptions, evaluate
from mocomp.commands.extend import extend
from mocomp.commands.prune import PruneOptions, prune
from mocomp.commands.upcycle import upcycle
from mocomp.errors import ParityFailed
from mocomp.fill import stock
from mocomp.models.source import open_source
from mocomp.nn.on_disk import SMALL, Shelf, Weight, on_disk
from mocomp.options import CarveOptions, DensifyOptions, ExtendOptions, UpcycleOptions
from mocomp.resources import Resources
from mocomp.verify import block_proof, memory
from mocomp.verify.reference import Reference
from mocomp.weights import recipes
from mocomp.weights.checkpoint import Checkpoint
from mocomp.weights.recipes import literal

LITTLE = Resources(memory="1KB")
BLOCKS = UpcycleOptions(groups="4", top_k=2, parity="blocks")
IDS = torch.tensor([[5, 9, 11, 3, 2, 7, 7], [1, 2, 3, 100, 5, 0, 0]])


def written(file, **row):
    file.write_text(json.dumps(row) + "\n")
    return str(file)


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gpt_oss", "deepseek_v3", "phimoe", "bert"])
def test_a_model_on_disk_gives_the_same_numbers(checkpoint, family):
    """To the bit, of what transformers loads whole."""
    source = open_source(str(checkpoint(family)))
    whole = source.model_class.from_pretrained(
        source.directory, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    )
    with torch.no_grad():
        expected, actual = (model.eval()(input_ids=IDS)[0] for model in (whole, on_disk(source, 0)))
    assert torch.equal(expected, actual)


def test_a_mixture_of_ours_on_disk_gives_the_same_numbers(upcycled):
    source = open_source(str(upcycled("llama")))
    models = Reference.load(source, None), Reference.load(source, None, 0)  # type: ignore[arg-type]
    with torch.no_grad():
        whole, streamed = (reference.model(input_ids=IDS)[0] for reference in models)
    assert torch.equal(whole, streamed)
    assert [type(reference.model.lm_head.weight.data) for reference in models] == [torch.Tensor, Weight]


def test_the_first_weights_are_kept_as_far_as_there_is_room():
    reads = []
    size = 2 * SMALL
    weights = [recipes.Tensor((size // 4,), torch.float32, name) for name in "abc"]

    def read(name, start, stop):
        reads.append(name)
        return torch.zeros(stop - start)

    shelf = Shelf(read, 2 * size)
    for _ in range(3):
        for weight in weights:
            shelf.get(weight)
    assert reads == ["a", "b", "c", "c", "c"]
    assert sum(value.nbytes for value in shelf.kept.values()) == 2 * size


def test_an_expert_and_the_rows_of_a_table_are_read_alone():
    """What is larger than the room is never read whole for a part of it."""
    asked = []
    content = torch.randn(8, 64, 128)

    def read(name, start, stop):
        asked.append((start, stop))
        return content[start:stop]

    bank = Weight(recipes.Tensor((8, 64, 128), torch.float32, "bank"), Shelf(read, 0))
    assert torch.equal(bank[3], content[3]) and torch.equal(bank[-1], content[7])
    table = Weight(recipes.reshape(recipes.Tensor((8, 64, 128), torch.float32, "bank"), (8, 8192)), Shelf(read, 0))
    ids = torch.tensor([[2, 2, 5]])
    assert torch.equal(torch.nn.functional.embedding(ids, table), content.reshape(8, -1)[ids])
    assert asked == [(3, 4), (7, 8), (2, 3), (5, 6)]


@pytest.mark.parametrize("layout", ["stock", "mocomp"])
def test_blocks_are_proven_alone(checkpoint, tmp_path, layout):
    receipt = upcycle(str(checkpoint("llama")), tmp_path / "out", UpcycleOptions(**vars(BLOCKS) | {"layout": layout}), LITTLE)
    assert receipt.preserved and receipt.moved is not None and receipt.moved < making.PRESERVED and receipt.kl is None
    assert receipt.notes[0] == "proof: block by block, each alone, on 64 seeded tokens"
    assert receipt.notes[1] == "15 tensors, each of which was to stay as it is, were compared byte for byte"


def test_blocks_of_several_modules_are_proven_alone(checkpoint, tmp_path):
    receipt = upcycle(str(checkpoint("bert")), tmp_path / "out", BLOCKS, LITTLE)
    assert receipt.moved is not None and receipt.moved < making.PRESERVED


def test_a_lost_scale_is_caught(checkpoint, tmp_path, monkeypatch):
    """Slices whose routing is scaled by their number, in a class that has no such scale."""
    options = UpcycleOptions(groups="4", top_k=2, granularity=2, parity="blocks", layout="stock")
    upcycle(str(checkpoint("llama")), tmp_path / "right", options, LITTLE)
    monkeypatch.setattr(stock, "scaled", lambda source, factor: source)
    with pytest.raises(ParityFailed, match="was to preserve the function"):
        upcycle(str(checkpoint("llama")), tmp_path / "wrong", options, LITTLE)
    assert not (tmp_path / "wrong").exists()


def test_a_swapped_expert_is_caught(checkpoint, tmp_path, monkeypatch):
    """The last products of two experts change places in what is written of one layer."""
    options = CarveOptions(experts=8, shared=1, top_k=7, method="random", parity="blocks")
    carve(str(checkpoint("llama")), tmp_path / "right", options, LITTLE)
    right = making.stored

    def swapped(filled, holder):
        made = right(filled, holder)
        name = "model.layers.1.mlp.experts.w_out"
        if name in made:
            bank = made[name]
            parts = [recipes.slice_of(bank, 0, i, i + 1) for i in range(bank.shape[0])]
            made[name] = recipes.concat([parts[1], parts[0], *parts[2:]], 0)
        return made

    monkeypatch.setattr(making, "stored", swapped)
    with pytest.raises(ParityFailed, match="was to preserve the function"):
        carve(str(checkpoint("llama")), tmp_path / "wrong", options, LITTLE)


@pytest.mark.parametrize("what", ["touched", "gone"])
def test_a_tensor_that_was_to_stay_is_compared(checkpoint, tmp_path, monkeypatch, what):
    name, right = "model.layers.1.self_attn.k_proj.weight", making.write_checkpoint

    def wrong(directory, weights, *rest):
        if what == "gone":
            return right(directory, {n: r for n, r in weights.items() if n != name} | {"other": literal(torch.ones(2))}, *rest)
        files = right(directory, weights, *rest)
        with Checkpoint(directory) as made:
            entry = made.entries[name]
        with entry.file.open("r+b") as file:
            file.seek(entry.offset + 40)
            file.write(b"\x01")
        return files

    monkeypatch.setattr(making, "write_checkpoint", wrong)
    with pytest.raises(ParityFailed, match=f"tensor {name} was to stay as it is, and"):
        upcycle(str(checkpoint("llama")), tmp_path / "out", BLOCKS)


def test_blocks_are_chosen_where_the_model_does_not_fit(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 10**5)
    options = UpcycleOptions(**vars(BLOCKS) | {"parity": "full"})
    receipt = upcycle(str(checkpoint("llama")), tmp_path / "out", options)
    assert receipt.moved is not None and receipt.kl is None
    assert "the models do not fit into the memory that is free, so each block is proven alone" in receipt.notes


def test_extend_prune_and_densify_by_blocks(checkpoint, upcycled, tmp_path):
    """What moved is told where it was to move; the rest is held to the same bound."""
    source = str(checkpoint("qwen3_moe"))
    options = ExtendOptions(groups="image=2", modality=("image=100..127",), parity="blocks")
    more = extend(source, tmp_path / "more", options, LITTLE)
    assert more.preserved and more.moved is not None and more.moved < making.PRESERVED
    fewer = prune(source, tmp_path / "fewer", PruneOptions(experts=6, parity="blocks"), LITTLE)
    assert fewer.moved is not None and 0.01 < fewer.moved < 10
    upcycle(str(checkpoint("llama")), tmp_path / "moe", UpcycleOptions(groups="4", layout="mocomp", parity="off"))
    dense = densify(str(tmp_path / "moe"), tmp_path / "dense", DensifyOptions(parity="blocks"), LITTLE)
    assert dense.preserved and dense.moved is not None and dense.moved < making.PRESERVED
    assert "each of which was to stay as it is" in dense.notes[1]


def test_memory_changes_no_byte(checkpoint, tmp_path):
    """Of a router made of what the model computes, under any memory."""
    source = str(checkpoint("llama"))
    options = UpcycleOptions(groups="4", router_init="hidden")
    for name, given in (("little", LITTLE), ("much", Resources(memory="4GB"))):
        upcycle(source, tmp_path / name, options, given)
    little, much = (Checkpoint(tmp_path / name) for name in ("little", "much"))
    with little, much:
        assert little.entries.keys() == much.entries.keys()
        for name in little.entries:
            assert torch.equal(*(c.recipe(name).evaluate(c.read) for c in (little, much)))


def test_eval_in_parts_is_eval(converted, tmp_path):
    """Rows of several lengths, more than go through a part together."""
    made = converted("qwen3_moe")
    file = tmp_path / "rows.jsonl"
    rows = [np.random.default_rng(i).integers(3, 128, 5 + i).tolist() for i in range(7)]
    file.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
    whole, parts = (evaluate(made.directory, EvalOptions(data=str(file)), Resources(memory=m)) for m in ("4GB", "1KB"))
    assert (whole.rows, whole.tokens) == (parts.rows, parts.tokens) == (7, sum(map(len, rows)))
    assert parts.perplexity["all"].reference == whole.perplexity["all"].reference
    assert parts.perplexity["all"].artifact == pytest.approx(whole.perplexity["all"].artifact, rel=1e-5)
    assert [layer.agreement for layer in parts.layers] == [layer.agreement for layer in whole.layers]


def test_tokens_reach_every_expert_or_it_is_said(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(block_proof, "FEWEST", 1)
    monkeypatch.setattr(block_proof, "MOST", 2)
    receipt = upcycle(str(checkpoint("llama")), tmp_path / "out", BLOCKS, LITTLE)
    assert any("experts were chosen by no token of the proof" in note for note in receipt.notes)
