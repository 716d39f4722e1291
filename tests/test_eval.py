"""The figures of `mocomp eval`, worked out once more by transformers, scipy and scikit-learn; and that they show a fault."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from scipy.special import log_softmax, rel_entr, softmax

from mocomp.commands.evaluate import EvalOptions, evaluate
from mocomp.errors import BadInput, Usage
from mocomp.options import ConvertOptions
from mocomp.pipeline import convert
from mocomp.report.evaluation import Evaluation
from tests import checkpoints
from tests.verify.test_similarity import neighbours_in_common

LENGTHS = (5, 17, 9, 31, 2, 12)
SPLIT = 100
"""Ids from here on are those of images, wherever a test tells them apart."""


def rows_of(lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    random = np.random.default_rng(7)
    return [random.integers(3, checkpoints.VOCABULARY, length).tolist() for length in lengths]


def write(path: Path, rows: list[list[int]]) -> str:
    path.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
    return str(path)


def padded(rows: list[list[int]]) -> dict[str, np.ndarray]:
    """The rows as arrays [R, 31], filled up at the right."""
    ids, mask = np.zeros((len(rows), 31), np.int64), np.zeros((len(rows), 31), np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory, checkpoint):
    """artifact(family, **options): an unproven artifact, which each test may write into."""
    made: dict[tuple, Path] = {}

    def of(family: str, **options) -> Path:
        key = (family, *sorted(options.items()))
        if key not in made:
            directory = tmp_path_factory.mktemp(family) / "artifact"
            convert(str(checkpoint(family)), directory, ConvertOptions(parity="off", **options))
            made[key] = directory
        return made[key]

    return of


@pytest.fixture(scope="module")
def another(tmp_path_factory, checkpoint):
    """another(family, only): the checkpoint of a family with other numbers in the tensors whose names contain `only`."""

    def made(family: str, only: str = "") -> str:
        directory = tmp_path_factory.mktemp("another") / family
        shutil.copytree(checkpoint(family), directory)
        tensors = load_file(directory / "model.safetensors")
        generator = torch.Generator().manual_seed(5)
        for name in sorted(tensors):
            if only in name and tensors[name].dim() > 1:
                tensors[name] = tensors[name][torch.randperm(len(tensors[name]), generator=generator)]
        save_file(tensors, directory / "model.safetensors", {"format": "pt"})
        return str(directory)

    return made


def model_of(directory: Path, cls: str = "AutoModelForCausalLM"):
    return getattr(transformers, cls).from_pretrained(directory, dtype=torch.float32).eval()


def loss_of(model, rows: list[list[int]], wanted=lambda ids: ids >= 0) -> tuple[float, int]:
    """(perplexity by the loss that transformers itself works out, predicted tokens) of the tokens that are wanted."""
    total, count = 0.0, 0
    for row in rows:
        ids = torch.tensor([row])
        labels = ids.where(wanted(ids), -100)
        own = int((labels[:, 1:] != -100).sum())
        if own:
            with torch.no_grad():
                total += float(model(ids, labels=labels).loss) * own
            count += own
    return float(np.exp(total / count)), count


def test_perplexity_is_that_of_the_loss_of_transformers(artifact, checkpoint, tmp_path):
    rows, model = rows_of(), model_of(checkpoint("qwen3_moe"))
    options = EvalOptions(data=write(tmp_path / "rows.jsonl", rows), modality=(f"image={SPLIT}..127",))
    found = evaluate(artifact("qwen3_moe"), options)
    assert list(found.perplexity) == ["all", "text", "image"] and (found.rows, found.tokens) == (6, sum(LENGTHS))
    for name, wanted in {
        "all": lambda ids: ids >= 0, "text": lambda ids: ids < SPLIT, "image": lambda ids: ids >= SPLIT,
    }.items():  # fmt: skip
        expected, count = loss_of(model, rows, wanted)
        assert found.perplexity[name].tokens == count
        assert found.perplexity[name].reference == pytest.approx(expected, rel=1e-5)
        assert found.perplexity[name].artifact == pytest.approx(expected, rel=1e-4)
    assert found.top1 == 1.0 and found.kl is not None and found.kl < 1e-9 and found.error < 1e-5
    assert [layer.agreement for layer in found.layers] == [1.0, 1.0] and found.cosine is found.retrieval is None


def test_quantised_weights_cost_what_other_code_says_they_cost(artifact, checkpoint, tmp_path):
    import onnxruntime

    directory, rows = artifact("qwen3_moe", quantize="int2", group_size=16), rows_of()
    found = evaluate(directory, EvalOptions(data=write(tmp_path / "rows.jsonl", rows)))
    session = onnxruntime.InferenceSession(directory / "model.onnx", providers=["CPUExecutionProvider"])
    model, kl, same, surprise = model_of(checkpoint("qwen3_moe")), [], [], []
    for row in rows:
        ids = np.array([row])
        given = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        empty = {i.name: np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32) for i in session.get_inputs()[2:]}
        got = session.run(["logits"], given | empty)[0][0]
        with torch.no_grad():
            expected = model(torch.from_numpy(ids)).logits[0].numpy()
        kl += rel_entr(softmax(expected, -1), softmax(got, -1)).sum(-1).tolist()
        same += (expected.argmax(-1) == got.argmax(-1)).tolist()
        surprise += (-log_softmax(got, -1)[np.arange(len(row) - 1), row[1:]]).tolist()
    assert found.kl == pytest.approx(np.mean(kl), rel=1e-3) and found.top1 == pytest.approx(np.mean(same))
    assert found.perplexity["all"].artifact == pytest.approx(np.exp(np.mean(surprise)), rel=1e-4)
    assert np.mean(kl) > 1e-3 and found.error > 1e-2 and min(layer.agreement for layer in found.layers) < 1.0


def test_an_artifact_of_another_model_is_shown_by_all_figures(artifact, another, tmp_path):
    data = write(tmp_path / "rows.jsonl", rows_of())
    found = evaluate(artifact("qwen3_moe"), EvalOptions(data=data, reference=another("qwen3_moe")))
    assert found.kl is not None and found.kl > 0.1 and found.top1 is not None and found.top1 < 0.5 and found.error > 0.1
    assert max(layer.agreement for layer in found.layers) < 0.9


def test_a_fault_in_one_router_shows_in_its_layer_and_not_before(artifact, another, tmp_path):
    data = write(tmp_path / "rows.jsonl", rows_of())
    found = evaluate(artifact("qwen3_moe"), EvalOptions(data=data, reference=another("qwen3_moe", "layers.1.mlp.gate.")))
    first, second = found.layers
    assert first.agreement == 1.0 and second.agreement < 0.9 and second.layer == "model.layers.1.mlp.experts"


def test_padding_counts_for_nothing(artifact, checkpoint, tmp_path):
    rows, directory = rows_of(), artifact("qwen3_moe", quantize="int2", group_size=16)
    np.savez(tmp_path / "rows.npz", **padded(rows))
    found = evaluate(directory, EvalOptions(data=str(tmp_path / "rows.npz")))
    plain = evaluate(directory, EvalOptions(data=write(tmp_path / "rows.jsonl", rows)))
    expected, count = loss_of(model_of(checkpoint("qwen3_moe")), rows)
    assert found.tokens == sum(LENGTHS) and found.perplexity["all"].tokens == count
    assert found.perplexity["all"].reference == pytest.approx(expected, rel=1e-5)
    assert found.perplexity["all"].artifact == pytest.approx(plain.perplexity["all"].artifact, rel=1e-4)
    assert (found.kl, found.top1, found.error) == pytest.approx((plain.kl, plain.top1, plain.error), rel=1e-3)
    assert [layer.agreement for layer in found.layers] == pytest.approx([layer.agreement for layer in plain.layers])


def test_an_encoder_has_vectors_and_neighbours(artifact, checkpoint, another, tmp_path):
    rows = rows_of((7, 12, 3, 20, 9, 14, 5, 31, 6, 11, 8, 10, 4, 13))
    data = write(tmp_path / "rows.jsonl", rows)
    good = evaluate(artifact("bert"), EvalOptions(data=data))
    assert good.cosine is not None and good.cosine["min"] > 0.99999 and good.retrieval == {"top1": 1.0, "top10": 1.0}
    assert good.kind == "encoder" and good.vectors == "last_hidden_state, mean over tokens" and not good.perplexity
    bad_reference = another("bert")
    bad = evaluate(artifact("bert"), EvalOptions(data=data, reference=bad_reference))
    vectors = []
    for directory in (checkpoint("bert"), bad_reference):
        model = model_of(directory, "AutoModel")
        with torch.no_grad():
            vectors.append(np.stack([model(torch.tensor([row])).last_hidden_state[0].mean(0).numpy() for row in rows]))
    actual, expected = vectors
    cosines = (actual * expected).sum(-1) / np.linalg.norm(actual, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert bad.cosine == pytest.approx({"mean": cosines.mean(), "min": cosines.min()}, abs=1e-5)
    assert bad.retrieval == pytest.approx(neighbours_in_common(actual, expected)) and bad.retrieval["top1"] < 0.8
    np.savez(tmp_path / "rows.npz", **padded(rows), token_type_ids=np.zeros((len(rows), 31), np.int64))
    same = evaluate(artifact("bert"), EvalOptions(data=str(tmp_path / "rows.npz"), reference=bad_reference))
    assert same.cosine == pytest.approx(bad.cosine, abs=1e-5) and same.error == pytest.approx(bad.error, rel=1e-5)


def test_a_model_of_images_has_vectors(artifact):
    found = evaluate(artifact("vit"), EvalOptions(rows=3))
    assert (found.kind, found.rows, found.tokens) == ("vision", 3, 0) and found.cosine is not None
    assert found.cosine["min"] > 0.99999 and found.top1 is None and found.notes[0].startswith("no --data")


@pytest.mark.parametrize("target", ["huggingface"])
def test_a_target_that_does_not_tell_its_choice_is_judged_by_its_outputs(artifact, tmp_path, target):
    extra = {"quantize": "int8"} if target == "huggingface" else {}
    found = evaluate(artifact("qwen3_moe", target=target, **extra), EvalOptions(rows=2))
    assert found.layers == [] and f"in 2 layers: a {target} artifact does not tell" in found.notes[-1]
    assert found.kl is not None and (found.kl < 1e-9) == (target == "onnx")


def test_modalities_of_groups_are_those_of_the_plan(upcycled, checkpoint, tmp_path_factory):
    """Here of an input that the dense model does not know; copies of its blocks compute what it does."""
    source = upcycled("qwen3", groups="text=2,image=2", modality=("image=kind:1",))
    directory = tmp_path_factory.mktemp("groups") / "artifact"
    convert(str(source), directory, ConvertOptions(parity="off"))
    found = evaluate(directory, EvalOptions(rows=3))
    assert list(found.perplexity) == ["all", "text", "image"] and found.kl is not None and found.kl < 1e-9
    assert [layer.agreement for layer in found.layers] == [1.0, 1.0]
    parts = [found.perplexity[name].tokens for name in found.perplexity]
    assert parts[0] == parts[1] + parts[2] == 3 * 63 and min(parts) > 60
    dense = evaluate(directory, EvalOptions(rows=3, reference=str(checkpoint("qwen3"))))
    assert dense.kl is not None and dense.kl < 1e-9 and dense.layers == [] and list(dense.perplexity) == ["all"]
    assert dense.notes[-1] == "which experts are chosen is not compared in 2 layers: the reference has no mixtures there"


def test_rows_are_taken_evenly_from_the_whole(artifact, tmp_path):
    rows = rows_of((2, 3, 4, 5, 6, 7))
    found = evaluate(artifact("qwen3_moe"), EvalOptions(data=write(tmp_path / "rows.jsonl", rows), rows=3))
    assert (found.rows, found.tokens) == (3, 2 + 4 + 6)


BAD = {
    "no data": ({"data": "nowhere.jsonl"}, BadInput, "not readable"),
    "a modality beyond the vocabulary": ({"modality": ("image=100..999",)}, Usage, "beyond the vocabulary of 128"),
    "a modality by another input": ({"modality": ("image=kind:1",)}, Usage, "by kind, and the model's inputs are input_ids"),
    "no rows": ({"rows": -1}, Usage, "rows is -1"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_meant_is_refused(artifact, case):
    given, error, words = BAD[case]
    with pytest.raises(error, match=words):
        evaluate(artifact("qwen3_moe"), EvalOptions(**given))


def test_a_reference_of_another_kind_is_refused(artifact, checkpoint):
    with pytest.raises(BadInput, match=r"the artifact predicts the next token, and it does not\nName a model"):
        evaluate(artifact("qwen3_moe"), EvalOptions(reference=str(checkpoint("bert"))))
    with pytest.raises(BadInput, match="the artifact takes pixel_values, and it does not"):
        evaluate(artifact("vit"), EvalOptions(reference=str(checkpoint("qwen3_moe"))))
    with pytest.raises(BadInput, match=r"a vocabulary of 128, and it one of 64"):
        evaluate(artifact("qwen3_moe"), EvalOptions(rows=1, reference=str(checkpoint("qwen3_moe", vocab_size=64))))
    with pytest.raises(BadInput, match=r"logits are \[1, 64, 128\], and its are \[1, 64, 256\]"):
        evaluate(artifact("qwen3_moe"), EvalOptions(rows=1, reference=str(checkpoint("qwen3_moe", vocab_size=256))))


def test_a_reference_with_other_outputs_is_refused(artifact, checkpoint, tmp_path):
    other = shutil.copytree(checkpoint("bert"), tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"architectures": ["BertForMaskedLM"]}))
    with pytest.raises(BadInput, match=r"last_hidden_state are .*, and its are not there"):
        evaluate(artifact("bert"), EvalOptions(rows=1, reference=str(other)))


def test_a_source_that_changed_is_refused(artifact, tmp_path, checkpoint):
    source = shutil.copytree(checkpoint("qwen3_moe"), tmp_path / "source")
    directory = shutil.copytree(artifact("qwen3_moe"), tmp_path / "artifact")
    report = json.loads((directory / "mocomp.json").read_text())
    (directory / "mocomp.json").write_text(json.dumps(report | {"source": str(source)}))
    assert evaluate(directory, EvalOptions(rows=1)).rows == 1
    with (source / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(BadInput, match="not the file that the artifact was made from"):
        evaluate(directory, EvalOptions())
    shutil.rmtree(source)
    with pytest.raises(BadInput, match="no such directory\nSay with --reference"):
        evaluate(directory, EvalOptions())


def test_the_command_leaves_its_figures_beside_the_report(command, artifact, tmp_path):
    directory, data = artifact("qwen3_moe"), write(tmp_path / "rows.jsonl", rows_of())
    done = command("eval", directory, "--data", data, "--modality", f"image={SPLIT}..127", "--json")
    found = json.loads(done.out)
    assert done.code == 0 and done.out.count("\n") == 1 and found == json.loads((directory / "eval.json").read_text())
    assert {"data", "kind", "rows", "tokens", "perplexity", "top1", "kl", "error", "layers", "cosine", "retrieval"} <= set(
        found
    )
    assert found["perplexity"].keys() == {"all", "text", "image"} and found["layers"][0].keys() == {"layer", "agreement"}
    assert "eval: 6 rows" in done.err
    shown = command("eval", directory, "--data", data, "--rows", 2)
    assert shown.code == 0 and f"generator, 2 rows of {data}, " in shown.out and "same experts chosen 100.00%" in shown.out
    assert command("eval", tmp_path).code == 5


def test_what_is_no_number_is_null():
    found = Evaluation("a", "b", "", "data", "generator", 0, kl=float("nan"), error=float("inf"))
    assert json.loads(json.dumps(found.as_json(), allow_nan=False))["error"] is None
