"""The commands `usage` and `prune` on the trained digits model: what they print and leave, and what they refuse."""

import json
from dataclasses import fields
from pathlib import Path

import pytest
import transformers
from safetensors.torch import load_file

from mocomp.cli import prune, usage
from mocomp.commands.prune import PruneOptions
from mocomp.commands.usage import UsageOptions
from mocomp.report import RECEIPT
from mocomp.resources import Resources
from tests.planted_experts import dead_row, eager, logits_of

DIGITS = Path(__file__).parents[1] / "examples" / "digits"
IMAGES = ("--modality", "image=200..255")


@pytest.fixture(scope="session")
def few(tmp_path_factory):
    """The first rows of the digits model's data: their ids, and the file."""
    text = [json.loads(line)["text"] for line in (DIGITS / "calibration.jsonl").read_text().splitlines()[:5]]
    tokenizer = transformers.AutoTokenizer.from_pretrained(DIGITS / "checkpoint")
    file = tmp_path_factory.mktemp("few") / "few.jsonl"
    file.write_text("".join(json.dumps({"text": line}) + "\n" for line in text))
    return [tokenizer(line).input_ids for line in text], file


@pytest.fixture(scope="session")
def planted(tmp_path_factory, few):
    """The digits model with an expert in each layer that no token of those rows chooses."""
    made, rows = DIGITS / "checkpoint", few[0]
    for layer, expert in enumerate((3, 0, 6)):  # front to back, since a layer feeds the next
        block, made_of = f"model.layers.{layer}.mlp", made
        made = tmp_path_factory.mktemp("planted") / str(layer)
        dead_row(made_of, made, f"{block}.gate.weight", block, expert, rows)
    return made


def test_usage_shows_a_map_by_modality(command, few):
    done = command("usage", DIGITS / "checkpoint", "--data", few[1], *IMAGES)
    first, columns, *rows = done.out.splitlines()
    tokens = sum(map(len, few[0]))
    assert done.code == 0 and first == f"usage of experts: {tokens} tokens of {few[1]}"
    assert columns.split()[:5] == ["layer", "text", "image", "E", "K"]
    maps = [row.split()[1:3] for row in rows[:3]]
    assert all(len(text) == len(image) == 8 and set(text + image) <= set("·▁▂▃▄▅▆▇█") for text, image in maps)
    assert "\x1b" not in done.out and any("experts left in each layer" in row for row in rows)


def test_dead_experts_go_and_nothing_moves(command, few, planted, tmp_path):
    """The acceptance: what usage calls dead, prune removes, and the receipt says that nothing changed on that data."""
    found = json.loads(command("usage", planted, "--data", few[1], "--json").out)
    dead = [layer["dead"] for layer in found["layers"]]
    assert all(expert in gone for expert, gone in zip((3, 0, 6), dead, strict=True))
    out = tmp_path / "pruned"
    done = command("prune", planted, "-o", out, "--dead", "--data", few[1])
    assert done.code == 0
    (verdict,) = (text for text in done.out.splitlines() if "function" in text)
    tokens = sum(map(len, few[0]))
    assert verdict.startswith(f"  function preserved for {tokens} tokens of {few[1]}: outputs differ by ")
    receipt = json.loads((out / RECEIPT).read_text())
    assert receipt["moved"] < 1e-6 and receipt["experts"] == 24 - sum(map(len, dead))
    told = [note.partition(" is without ")[2] for note in receipt["notes"] if " is without " in note]
    assert told == [", ".join(map(str, gone)) for gone in dead]


def test_the_class_of_the_digits_model_without_dead_experts(command, few, planted, tmp_path):
    done = command("prune", planted, "-o", tmp_path / "out", "--dead", "--layout", "stock", "--data", few[1], "--json")
    receipt = json.loads(done.out)
    assert receipt["loads_as"] == "transformers.Qwen3MoeForCausalLM" and receipt["changes"] == ""
    pairs = zip(logits_of(eager(planted), few[0]), logits_of(eager(tmp_path / "out"), few[0]), strict=True)
    assert all((a - b).abs().max() < 1e-5 * a.abs().max() for a, b in pairs)
    assert {t.dtype for t in load_file(tmp_path / "out" / "model.safetensors").values()} == {
        t.dtype for t in load_file(planted / "model.safetensors").values()
    }
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert 7 in (config.get("num_experts"), config.get("num_local_experts")) and (tmp_path / "out" / "tokenizer.json").exists()


def test_living_experts_that_go_are_told(command, few, tmp_path):
    done = command("prune", DIGITS / "checkpoint", "-o", tmp_path / "out", "--experts", 6, "--data", few[1])
    assert done.code == 0 and "function moved for" in done.out and "of the routed weight went to experts" in done.out


def test_options_are_those_of_the_file(command, tmp_path):
    for known, options in ((usage, UsageOptions), (prune, PruneOptions)):
        here = {"source", "output", "config", "as_json", "target"}
        files = {f.name for f in (*fields(options), *fields(Resources))}
        named = {p.name for p in known.params} - here
        assert {f.name for f in fields(options)} <= named <= files
    for name in ("usage", "prune"):
        assert "[default: " in command(name, "-h").out
    (tmp_path / "options.yaml").write_text("expert: 4\n")
    done = command("prune", DIGITS / "checkpoint", "-o", tmp_path / "out", "--config", tmp_path / "options.yaml")
    assert done.code == 2 and "unknown option 'expert'" in done.err


@pytest.mark.parametrize(
    "arguments, code, words",
    [
        (("usage", DIGITS / "nowhere"), 5, "no such directory"),
        (("usage", DIGITS / "checkpoint", "--data", "nowhere.jsonl"), 5, "nowhere.jsonl: not readable"),
        (("usage", DIGITS / "checkpoint", "--modality", "image=200..256"), 2, "beyond the vocabulary"),
        (("prune", DIGITS / "checkpoint", "-o", "OUT"), 2, "Say one of --experts N, --budget SIZE and --dead"),
        (("prune", DIGITS / "checkpoint", "-o", "OUT", "--budget", "much"), 2, "is not a size"),
        (("prune", DIGITS / "dense", "-o", "OUT", "--experts", 2), 3, "no mixtures that can be pruned"),
    ],
)
def test_what_cannot_be_is_one_message(command, tmp_path, arguments, code, words):
    done = command(*(tmp_path / "out" if word == "OUT" else word for word in arguments))
    assert done.code == code and words in done.err and "Traceback" not in done.err and done.out == ""
    assert list(tmp_path.iterdir()) == []
