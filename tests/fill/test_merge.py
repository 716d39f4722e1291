"""Merging: each token goes through the model that is its modality's, and what is no model of the same kind is refused."""

import json
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from mocomp import checkpoints, nn
from mocomp.checkpoints import opened
from mocomp.commands.merge import block_of, branch, members_of, merge, modality_of
from mocomp.errors import ParityFailed, Unsupported, Usage
from mocomp.fill.merge import Merge
from mocomp.fill.routing import random_rows
from mocomp.options import ConvertOptions, MergeOptions
from mocomp.pipeline import convert
from mocomp.verify.measures import relative_error
from mocomp.weights import recipes
from mocomp.weights.checkpoint import Checkpoint

IMAGE = ("image=100..127",)
SAME = 1e-5


def stock_model(directory: Path):
    return transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    ).eval()


def logits(model, low: int = 0, high: int = 128) -> np.ndarray:
    ids = torch.randint(low, high, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(input_ids=ids).logits.numpy()


def tuned(base: Path, directory: Path, seed: int, dtype: torch.dtype = torch.float32) -> Path:
    """A model that differs from `base` in every weight."""
    model, generator = stock_model(base), torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.3 * parameter.std() * torch.randn(parameter.shape, generator=generator)
    model.to(dtype).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def base(checkpoint) -> Path:
    return checkpoint("llama")


@pytest.fixture(scope="module")
def text(base, tmp_path_factory) -> Path:
    return tuned(base, tmp_path_factory.mktemp("text"), 1)


@pytest.fixture(scope="module")
def image(base, tmp_path_factory) -> Path:
    return tuned(base, tmp_path_factory.mktemp("image"), 2)


@pytest.fixture(scope="module")
def dense(base):
    with opened(str(base), MergeOptions()) as dense:
        yield dense


def with_blocks_of(base: Path, other: Path):
    """The dense model `base` with the feed-forward blocks of another, built by hand."""
    model, theirs = stock_model(base), stock_model(other).state_dict()
    model.load_state_dict({name: value for name, value in theirs.items() if ".mlp." in name}, strict=False)
    return model


def test_tokens_of_a_modality_go_through_its_model(base, text, image, tmp_path):
    given = MergeOptions(expert=(f"text={text}", f"image={image}"), modality=IMAGE)
    receipt = merge(str(base), tmp_path / "moe", given)
    assert receipt.changes == "experts are of other checkpoints" and receipt.moved > SAME
    model = nn.load(tmp_path / "moe")
    for low, high, own in ((0, 100, text), (100, 128, image)):
        assert relative_error(logits(model, low, high), logits(with_blocks_of(base, own), low, high)) <= SAME
    assert convert(str(tmp_path / "moe"), tmp_path / "out", ConvertOptions()).parity.passed


def test_a_model_merged_with_itself_is_itself(base, tmp_path):
    given = MergeOptions(expert=(f"text={base}", f"text={base}", f"image={base}", f"image={base}"), modality=IMAGE, top_k=2)
    receipt = merge(str(base), tmp_path / "moe", given)
    assert receipt.preserved and receipt.moved <= SAME and receipt.notes[0].startswith("layout mocomp")
    assert receipt.plan["mixtures"][0]["groups"] == (("text", 2), ("image", 2))


def test_the_router_chooses_among_all_without_modalities(base, text, image, tmp_path):
    """Branch-train-mix: what Mixtral's class can hold is written for it."""
    given = MergeOptions(expert=(f"code={text}", f"law={image}", f"law={base}"), top_k=2, rest="average")
    receipt = merge(str(base), tmp_path / "moe", given)
    assert receipt.loads_as == "AutoModelForCausalLM: MixtralForCausalLM" and receipt.plan["modality"] is None
    models = [stock_model(place) for place in (text, image, base)]
    merged = stock_model(tmp_path / "moe")
    for name in ("model.layers.1.self_attn.q_proj.weight", "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"):
        mean = torch.stack([model.get_parameter(name) for model in models]).mean(0)
        assert torch.allclose(merged.get_parameter(name), mean, atol=1e-6)
    for e, model in enumerate(models):
        gate, up = model.model.layers[0].mlp.gate_proj.weight, model.model.layers[0].mlp.up_proj.weight
        assert torch.equal(merged.model.layers[0].mlp.experts.gate_up_proj[e], torch.cat([gate, up]))


def test_what_is_averaged_is_compared_where_blocks_are_proven(base, text, image, tmp_path, monkeypatch):
    given = MergeOptions(expert=(f"a={text}", f"b={image}"), rest="average", parity="blocks", layout="mocomp")
    receipt = merge(str(base), tmp_path / "moe", given)
    [note] = [note for note in receipt.notes if "byte for byte" in note]
    assert "each of which was to be the mean over all models" in note and not note.startswith("0 ")
    right = checkpoints.write_checkpoint

    def wrong(directory, weights, *rest):
        name = "model.norm.weight"
        other = torch.full(weights[name].shape, 1.5, dtype=weights[name].dtype)
        return right(directory, weights | {name: recipes.literal(other)}, *rest)

    monkeypatch.setattr(checkpoints, "write_checkpoint", wrong)
    with pytest.raises(ParityFailed, match=r"model\.norm\.weight was to be the mean over all models, and is not"):
        merge(str(base), tmp_path / "wrong", given)
    assert not (tmp_path / "wrong").exists()


def prompts(place: Path, low: int, high: int) -> Path:
    ids = torch.randint(low, high, (3, 8), generator=torch.Generator().manual_seed(low)).tolist()
    place.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in ids))
    return place


@pytest.mark.parametrize("gate", ["hidden", "cheap_embed", "domain"])
def test_gates_prefer_the_expert_whose_prompts_a_token_is_like(base, text, image, tmp_path, gate):
    files = prompts(tmp_path / "a.jsonl", 0, 20), prompts(tmp_path / "b.jsonl", 60, 80)
    given = MergeOptions(
        expert=(f"a={text}", f"b={image}"), gate=gate, prompts=(f"a={files[0]}", f"b={files[1]}"), layout="mocomp", parity="off"
    )
    merge(str(base), tmp_path / "moe", given)
    model, rows = stock_model(base), []
    seen: dict[int, list[torch.Tensor]] = {0: [], 1: []}
    model.model.layers[1].mlp.register_forward_pre_hook(lambda _, args: rows.append(args[0]))
    for e, file in enumerate(files):
        for line in file.read_text().splitlines():
            ids = torch.tensor([json.loads(line)["input_ids"]])
            rows.clear()
            with torch.no_grad():
                model(input_ids=ids)
                seen[e].append(rows[0][0] if gate == "hidden" else model.get_input_embeddings()(ids)[0])
    length = 64**-0.5 if gate == "domain" else 1.0
    expected = torch.stack([length * torch.nn.functional.normalize(torch.cat(seen[e]).mean(0), dim=0) for e in (0, 1)])
    actual = nn.load(tmp_path / "moe").model.layers[1].mlp.router.weight
    assert torch.allclose(actual, expected, atol=1e-6)


def test_types_that_differ_keep_their_numbers(base, text, image, tmp_path):
    """bfloat16 beside float32 on disk: the experts are in float32, which holds both, the rest is as in the base."""
    half = tuned(base, tmp_path / "half", 3, torch.bfloat16)
    given = MergeOptions(expert=(f"text={half}", f"image={image}"), modality=IMAGE, parity="off")
    merge(str(half), tmp_path / "moe", given)
    model = nn.load(tmp_path / "moe")
    for e, own in enumerate((half, image)):
        assert torch.equal(model.model.layers[0].mlp.experts.w_out[e], stock_model(own).model.layers[0].mlp.down_proj.weight)
    types = {name: entry.dtype for name, entry in Checkpoint(tmp_path / "moe").entries.items()}
    assert types["model.embed_tokens.weight"] is torch.bfloat16 and types["model.layers.0.mlp.experts.w_in"] is torch.float32


def test_towers_get_their_own_models(checkpoint, tmp_path):
    clip = checkpoint("clip")
    towers = ("text=tower:text_model", "image=tower:vision_model")
    given = {"expert": (f"text={clip}", f"image={clip}"), "modality": towers, "otherwise": "error"}
    receipt = merge(str(clip), tmp_path / "moe", MergeOptions(**given))
    assert receipt.preserved and receipt.moved <= SAME
    assert {m["groups"] for m in receipt.plan["mixtures"]} == {(("text", 1),), (("image", 1),)}


def test_what_may_differ_is_noted(dense, checkpoint, tmp_path):
    other = checkpoint("llama", vocab_size=132, pad_token_id=7)
    with ExitStack() as stack:
        found = branch(dense, str(other), "a/", "", MergeOptions(), stack)
        assert [note.partition(": ")[2] for note in found.notes] == [
            "its vocab_size is 132, and the base's is kept",
            "its pad_token_id is 7, and the base's is kept",
        ]
        assert block_of(dense, dense.blocks[0], found).dense.w_in.shape == dense.blocks[0].dense.w_in.shape
        with pytest.raises(Unsupported, match="vocab_size is 132, and 128 in the base"):
            branch(dense, str(other), "b/", "", MergeOptions(rest="average"), stack)
    model = tuned(Path(dense.source.directory), tmp_path / "words", 4)
    (model / "tokenizer.json").write_text("{}")
    with ExitStack() as stack:
        assert "its tokenizer is another" in branch(dense, str(model), "c/", "", MergeOptions(), stack).notes[0]


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("llama", {"intermediate_size": 80}, "intermediate_size is 80, and 96 in the base"),
        ("llama", {"rms_norm_eps": 1e-3}, "rms_norm_eps is 0.001, and 1e-06 in the base"),
        ("qwen3", {}, "it is Qwen3ForCausalLM, and the base LlamaForCausalLM"),
    ],
)
def test_another_architecture_is_refused(dense, checkpoint, family, changes, words):
    with ExitStack() as stack, pytest.raises(Unsupported, match=words):
        branch(dense, str(checkpoint(family, **changes)), "a/", "", MergeOptions(), stack)


REFUSED = [
    ({"expert": ("nothing",)}, "is not NAME=SOURCE"),
    ({"expert": ("a=BASE",), "modality": IMAGE}, "modalities with experts of one name"),
    ({"expert": ("text=BASE", "audio=BASE"), "modality": IMAGE}, "names 'image', but the groups are text, audio"),
    ({"expert": ("text=BASE", "image=BASE"), "modality": IMAGE, "top_k": 2}, "--top-k 2, and group text has 1"),
    ({"expert": ("a=BASE",), "top_k": 2}, "--top-k 2, and there are 1 experts"),
    ({"expert": ("a=BASE",), "router": "expert_choice"}, "any number of experts"),
    ({"expert": ("a=BASE",), "gate": "hidden"}, "gate hidden and 0 --prompts a=FILE for 1 --expert"),
    ({"expert": ("a=BASE",), "gate": "hidden", "prompts": ("a=F", "b=F")}, "--prompts for b"),
]


@pytest.mark.parametrize(("given", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_what_cannot_be_meant_is_refused(dense, given, words):
    here = str(dense.source.directory)
    options = MergeOptions(**given | {"expert": tuple(text.replace("BASE", here) for text in given["expert"])})
    with ExitStack() as stack, pytest.raises(Usage, match=words):
        modality = modality_of(options, dense.source)
        members = members_of(options, dense, modality is not None, stack)
        groups = tuple((name, len(own)) for name, own in members.items())
        blocks = {name: [dense.blocks[0]] * count for name, count in groups}
        reach = tuple((name,) for name, _ in groups)
        Merge(groups, reach, options.top_k, options.router, random_rows(0))(dense.blocks[0], blocks)


def test_options_that_say_nothing_are_refused(tmp_path):
    with pytest.raises(Usage, match="no experts"):
        merge("anything", tmp_path / "moe", MergeOptions())
    with pytest.raises(Usage, match="a random gate does not read them"):
        merge("anything", tmp_path / "moe", MergeOptions(expert=("a=b",), prompts=("a=c",)))


def test_the_command(command, base, text, image, tmp_path):
    done = command(
        "merge", base, "--expert", f"text={text}", "--expert", f"image={image}", "--modality", IMAGE[0], "-o", tmp_path / "moe"
    )
    assert done.code == 0 and "function moved" in done.out and "experts are of other checkpoints" in done.out
