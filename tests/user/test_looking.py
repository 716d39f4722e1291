"""What is told of a user's module: before a conversion by `inspect` and `check`, after it by the report."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import mocomp
from mocomp.commands.inspect import inspect_module
from mocomp.models.source import open_source
from mocomp.models.user.loading import load_module, look
from mocomp.models.user.source import ModuleSource
from mocomp.report.recognised import Recognised, print_recognised, recognised_in
from tests.user import modules

HERE = "tests.user.test_looking"
ROUTED = "tests.user.modules:routed"
DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "checkpoint"


class Cubed(nn.Module):
    """Nearly a mixture: no router that is known gives the cubes of its shares."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(modules.HIDDEN, 4)
        self.experts = nn.ModuleList(modules.Expert() for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        best, chosen = self.gate(x).softmax(-1).topk(2, -1)
        shares = torch.zeros_like(self.gate(x)).scatter(-1, chosen, best**3)
        return x + torch.stack([shares[..., i, None] * expert(x) for i, expert in enumerate(self.experts)]).sum(0)


class Slots(nn.Module):
    """Experts whose tokens were sent to them by somebody else."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(modules.Expert() for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([expert(x[i]) for i, expert in enumerate(self.experts)])


class Bessel(nn.Module):
    """What no target has."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(x)


class Joined(nn.Module):
    """Outputs whose sizes are sums and products of the inputs' own."""

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
        both = torch.cat([left, right], 1)
        return {"both": both, "flat": both.reshape(-1), "best": both.argmax(-1), "sum": both.sum()}


def cubed() -> Cubed:
    """With seeded weights."""
    torch.manual_seed(0)
    return Cubed()


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """Example inputs by the name of what they are for."""
    place, random = tmp_path_factory.mktemp("inputs"), np.random.default_rng(0)
    states = random.normal(size=(2, 5, modules.HIDDEN)).astype(np.float32)
    np.savez(place / "ids.npz", input_ids=random.integers(0, 11, (2, 7)))
    np.savez(place / "x.npz", x=states)
    return {"ids": place / "ids.npz", "x": place / "x.npz"}


def asked(files: dict[str, Path]) -> tuple[object, ...]:
    """The options of the routed model."""
    return "--inputs", files["ids"], "--dynamic", "input_ids=batch,seq"


@pytest.fixture(scope="module")
def source() -> ModuleSource:
    """The routed model in memory."""
    return mocomp.from_module(modules.routed(), {"input_ids": np.ones((2, 7), np.int64)}, {"input_ids": ("batch", "seq")})


def is_the_mixture(told: dict) -> bool:
    """Whether that is what `modules.Mixture` says of itself: 2 of 4, softmax divided by the sum of the chosen, gelu."""
    kinds = ("mixture", "softmax_topk(k=2, normalize=True)", "ffn(gelu)", 4)
    return (told["block"], told["router"], told["expert"], told["experts"]) == kinds and 0 <= told["error"] < 1e-5


def test_a_conversion_tells_what_it_recognised(files, tmp_path, command):
    directory = tmp_path / "made"
    done = command("convert", ROUTED, "-o", directory, "--parity", "off", *asked(files))
    words = "mixture: softmax_topk(k=2, normalize=True) over 4 experts ffn(gelu), proven to "
    assert done.code == 0 and done.out.count(words) == 1
    data = json.loads((directory / "mocomp.json").read_text())
    assert len(data["recognised"]) == 1 and is_the_mixture(data["recognised"][0])
    assert f"<li>{words}" in (directory / "report.html").read_text()

    data["recognised"][0]["block"] = "<b>mixture"
    _write(directory, data)
    assert command("report", directory).code == 0
    assert f"<li>&lt;b&gt;{words}" in (directory / "report.html").read_text()

    del data["recognised"]  # as earlier versions wrote it
    _write(directory, data)
    assert command("report", directory).code == 0 and words not in (directory / "report.html").read_text()
    assert command("check", directory).code == 0
    assert command("check", directory, "--inputs", files["ids"]).code == 2

    for odd in ([{"block": "mixture"}], [7], None):
        _write(directory, data | {"recognised": odd})
        done = command("check", directory)
        assert done.code == 5 and "not a report of mocomp convert" in done.err, odd
    wordy = {"block": "", "router": "", "expert": "", "experts": 1, "error": "x"}
    _write(directory, data | {"recognised": [wordy]})
    done = command("report", directory)
    assert done.code == 5 and "mocomp.json" in done.err


def _write(directory: Path, data: dict) -> None:
    (directory / "mocomp.json").write_text(json.dumps(data))


def test_inspect_tells_what_goes_in_and_out(files, tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = command("inspect", ROUTED, *asked(files))
    lines = [line.strip() for line in done.out.splitlines()]
    parameters = sum(parameter.numel() for parameter in modules.routed().parameters())
    assert done.code == 0 and lines[:3] == [
        f"Routed, {parameters / 1e6:.2f} M parameters",
        "input input_ids: int64 [batch, seq]",
        "output output: float32 [batch, seq, 5]",
    ]
    assert lines[3].startswith("mixture: softmax_topk(k=2, normalize=True) over 4 experts ffn(gelu), proven to ")
    told = json.loads(command("inspect", ROUTED, *asked(files), "--json").out)
    assert told["parameters"] == parameters and told["source"] == ROUTED and not told["missed"] and not told["obstacle"]
    assert told["outputs"] == [{"name": "output", "dtype": "float32", "shape": ["batch", "seq", modules.KINDS]}]
    assert len(told["recognised"]) == 1 and is_the_mixture(told["recognised"][0])
    assert list(tmp_path.iterdir()) == []


def test_sizes_are_those_that_it_gives():
    """The expressions of sizes against the module itself, where it was neither run nor traced."""
    given = {"left": torch.zeros(2, 3), "right": torch.zeros(2, 4)}
    dynamic = {"left": ("n", "a"), "right": ("n", "b")}
    told = inspect_module(mocomp.from_module(Joined(), given, dynamic))
    sizes = {"n": 9, "a": 6, "b": 8}
    expected = Joined()(torch.zeros(9, 6), torch.zeros(9, 8))
    assert {row.name: [eval(str(size), {}, sizes) for size in row.shape] for row in told.outputs} == {
        name: list(value.shape) for name, value in expected.items()
    }
    assert {row.name: row.dtype for row in told.outputs}["best"] == "int64" and not told.recognised


def test_what_came_near_is_said_once(files, command):
    options = ("--inputs", files["x"], "--dynamic", "x=batch,seq,_")
    told = json.loads(command("inspect", f"{HERE}:cubed", *options, "--json").out)
    (missed,) = told["missed"]
    assert "the module is no mixture that is known" in missed and not told["recognised"] and missed not in told["notes"]
    shown = command("inspect", f"{HERE}:cubed", *options).out
    assert shown.count("no mixture that is known") == 1 and "  no mixture of experts\n" in shown
    traced = load_module(mocomp.from_module(cubed(), dict(np.load(files["x"])), {"x": ("batch", "seq", None)}))
    assert traced.notes.count(missed) == 1  # which the report of a conversion has


def test_experts_without_a_router(capsys):
    example = torch.randn(3, 4, modules.HIDDEN, generator=torch.Generator().manual_seed(0))
    slots = mocomp.from_module(Slots(), {"x": example}, {"x": (None, "tokens", None)})
    (told,) = recognised_in(slots)
    assert (told.block, told.router, told.expert, told.experts) == ("", "", "ffn(gelu)", 3)
    assert told.words().startswith("the module: 3 experts ffn(gelu), their tokens sent by the module itself, proven to ")
    print_recognised([Recognised(f"layers.{i}", "softmax_topk(k=1)", "ffn(relu)", 2, 3e-8) for i in range(14)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "  layers.0: softmax_topk(k=1) over 2 experts ffn(relu), proven to 3e-08"
    assert len(lines) == 13 and lines[-1] == "  and 2 more mixtures"


def test_the_report_reads_the_proof(source, monkeypatch):
    """A block that recognition takes back is in no report."""
    assert [one.block for one in recognised_in(source)] == ["mixture"]
    monkeypatch.setattr(look(source).recognition, "blocks", [])
    assert recognised_in(source) == [] == inspect_module(source).recognised


def test_a_checkpoint_tells_by_its_config(command):
    assert recognised_in(open_source(str(DIGITS))) == []
    done = command("inspect", DIGITS, "--json")
    assert done.code == 0 and json.loads(done.out)["mixtures"][0]["count"] == 3


def test_what_cannot_be_traced_is_told_all_the_same(files, command):
    options = ("--inputs", files["x"], "--dynamic", "x=batch,seq,_")
    done = command("inspect", "tests.user.modules:Square", *options)
    assert done.code == 0 and "input x: float32 [batch, seq, 8]" in done.out and "output" not in done.out.splitlines()[2]
    assert "  cannot be converted: torch.export cannot trace it" in done.out
    done = command("check", "tests.user.modules:Square", *options)
    assert done.code == 3 and "torch.export cannot trace it" in done.err


def test_check_says_what_a_conversion_would(files, tmp_path, command, monkeypatch):
    """ONNX Runtime has no operator for experts of 12 columns in 8 bits, and the functions of target onnx take them."""
    monkeypatch.chdir(tmp_path)
    options = (*asked(files), "--quantize", "int8")
    assert command("check", ROUTED, "--target", "onnx", *options).out == f"target onnx takes {ROUTED}, as it is\n"
    done = command("check", ROUTED, *options, "--json")
    told = json.loads(done.out)
    (gap,) = told["gaps"]
    assert done.code == 3 and not told["passed"] and gap["blocks"] and gap["where"] == "mixture"
    assert list(tmp_path.iterdir()) == []
    converted = command("convert", ROUTED, "-o", tmp_path / "made", *options)
    assert converted.code == 3 and f"mixture: {gap['why']}" in converted.err


def test_check_makes_the_graph(files, tmp_path, command, monkeypatch):
    """An operator that ONNX has no form for is found where the graph is made, of a .pt2 file as well."""
    monkeypatch.chdir(tmp_path)
    done = command("check", f"{HERE}:Bessel", "--target", "onnx", "--inputs", files["x"])
    assert done.code == 3 and "bessel_j0" in done.err and list(tmp_path.iterdir()) == []
    for module, name in ((Bessel(), "bad.pt2"), (modules.Fixed(), "good.pt2")):
        torch.export.save(torch.export.export(module, (torch.ones(2, 4),)), name)
    done = command("check", "bad.pt2", "--target", "onnx")
    assert done.code == 3 and "bessel_j0" in done.err
    assert command("check", "good.pt2", "--target", "onnx").code == 0
    told = json.loads(command("inspect", "good.pt2", "--json").out)
    assert [row["shape"] for row in (*told["inputs"], *told["outputs"])] == [[2, 4], [2, 3]]


def test_check_for_hardware_that_is_not_here(files, command):
    """What an engine lacks is told of a module's mixtures by their names in it."""
    done = command("check", ROUTED, "--target", "tensorrt", "--gpu", "sm_90", *asked(files), "--json")
    gaps = json.loads(done.out)["gaps"]
    assert done.code == 0 and [gap["where"] for gap in gaps if "IMoELayer" in gap["why"]] == ["mixture"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((ROUTED,), 2, "no inputs are given"),
        ((ROUTED, "--inputs", "absent.npz"), 5, "absent.npz"),
        ((ROUTED, "--inputs", "IDS", "--dynamic", "input_ids=batch"), 2, "names 1 dimensions"),
        ((ROUTED, "--inputs", "IDS", "--state", "weights.pt"), 5, "no .safetensors file"),
        ((ROUTED, "--inputs", "IDS", "--trust-remote-code"), 2, "--trust-remote-code, and the source is a module"),
        ((DIGITS, "--inputs", "IDS"), 2, "--inputs, and the source is"),
        (("tests.user.modules:broken", "--inputs", "IDS"), 5, "no such weights"),
    ],
)
@pytest.mark.parametrize("name", ["inspect", "check"])
def test_what_is_asked_wrongly(files, command, name, arguments, code, message):
    done = command(name, *(files["ids"] if argument == "IDS" else argument for argument in arguments))
    assert done.code == code and message in done.err and "Traceback" not in done.err and not done.out
