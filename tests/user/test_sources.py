"""How a user's module is named, and what is said where that cannot be meant."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mocomp.errors import BadInput, MocompError, Unsupported, Usage
from mocomp.models.user.given import arrays_of, dynamic_of, load_state, open_module
from mocomp.models.user.likeness import Likeness
from mocomp.models.user.loading import load_module, look
from mocomp.models.user.named import Name, is_module
from mocomp.models.user.outputs import named
from mocomp.models.user.running import run
from mocomp.models.user.source import from_module
from mocomp.options import ConvertOptions
from mocomp.weights.in_memory import InMemory
from tests.user import modules

X = {"x": np.ones((2, 4), np.float32)}


@pytest.fixture
def inputs(tmp_path) -> str:
    """A file with an array x [2, 4]."""
    np.savez(tmp_path / "x.npz", **X)
    return str(tmp_path / "x.npz")


def test_what_is_a_module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "package.module:build").mkdir()
    assert is_module("a.b:c") and is_module("dir/file.py:make.inner") and is_module("x.pt2")
    assert not any(map(is_module, ("package.module:build", "org/name", "/a/dir", "a.b", "a b:c", ":c", "a.b:")))
    (tmp_path / "code.py").write_text("")
    assert Name.parsed("code:x").path().samefile("code.py")


def test_a_file_is_named(tmp_path, inputs):
    """Its own directory is where it looks for what it imports, and only then."""
    (tmp_path / "beside_it.py").write_text("from torch import nn\nWIDTH = 3\n")
    (tmp_path / "model.py").write_text(
        "from beside_it import WIDTH, nn\nNet = lambda: Own(4, WIDTH)\nclass Own(nn.Bilinear):\n"
        "  def __init__(self, a, b):\n    super().__init__(a, a, b)\n  def forward(self, x): return super().forward(x, x)\n"
    )
    source = open_module(f"{tmp_path}/model.py:Net", ConvertOptions(inputs=inputs))
    assert list(source.inputs) == ["x"] and source.module.out_features == 3
    assert set(source.file_sizes()) == {str(tmp_path / "model.py"), inputs}
    assert str(tmp_path) not in sys.path


BAD = {
    "no.such.module:build": "Python finds no module no",
    "tests.user.absent:build": "Python finds no module tests.user.absent",
    "tests.user.modules:absent": "has no absent\nIt has Tagger",
    "tests.user.modules:number": "it is a int",
    "tests.user.modules:no_module": "it gives a int, expected an nn.Module",
    "tests.user.modules:broken": r"calling it without arguments failed: RuntimeError: no such weights \(.*line \d+: raise",
    "absent/file.py:build": "no such file",
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_made_is_told(name, inputs):
    with pytest.raises(BadInput, match=BAD[name]):
        open_module(name, ConvertOptions(inputs=inputs))


def test_an_import_that_fails_is_told_with_its_line(tmp_path, inputs, command):
    (tmp_path / "bad.py").write_text("import math\nvalue = math.sqrt(-1)\n")
    done = command("convert", f"{tmp_path}/bad.py:build", "--inputs", inputs, "-o", tmp_path / "made")
    assert done.code == 5 and "line 2: value = math.sqrt(-1)" in done.err
    assert "Traceback" not in done.err and not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.pt2", "absent.pt2: no such file"),
        ("absent.py:build", "absent.py:build: no such file"),
        ("absent.module:build", "absent.module:build: no such package or module"),
        ("present.py", "it is a file, and no directory\nGive a directory with config.json; for a module of your own"),
        ("present.pt2", "no archive of torch.export: PytorchStreamReader failed reading zip archive: not a ZIP archive\n"),
    ],
)
def test_a_file_that_is_not_what_it_is_said_to_be(tmp_path, monkeypatch, inputs, command, name, message):
    monkeypatch.chdir(tmp_path)
    for file in ("present.py", "present.pt2"):
        (tmp_path / file).write_text("value = 1")
    done = command("convert", name, "-o", tmp_path / "made")
    assert done.code == 5 and message in done.err and not (tmp_path / "made").exists()


def test_options_of_the_other_kind_are_refused(tmp_path, inputs, command, checkpoint):
    for line in (
        ("convert", "tests.user.modules:Fixed", "--inputs", inputs, "--task", "fill-mask"),
        ("convert", "tests.user.modules:Fixed", "--inputs", inputs, "--target", "huggingface"),
        ("convert", "tests.user.modules:Fixed", "--inputs", inputs, "--parity", "blocks"),
        ("convert", "tests.user.modules:Fixed"),
        ("convert", checkpoint("bert"), "--inputs", inputs),
        ("convert", checkpoint("bert"), "--dynamic", "x=batch,_"),
    ):
        done = command(*line, "-o", tmp_path / "made")
        assert done.code == 2 and "Traceback" not in done.err, line
        assert not (tmp_path / "made").exists()


def test_inputs(tmp_path):
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object))
    np.save(tmp_path / "one.npz.npy", np.ones(3))
    (tmp_path / "bad.npz").write_bytes(b"PK nothing")
    for file, message in (
        ("objects.npz", "pickled objects"),
        ("one.npz.npy", "without a name"),
        ("bad.npz", "not readable"),
        ("no", "not readable"),
    ):
        with pytest.raises(BadInput, match=message):
            arrays_of(str(tmp_path / file))
    module = modules.Fixed()
    for given, message in (
        ({"y": np.ones(3)}, "does not know input y"),
        ({"x": np.ones((2, 4), complex)}, "complex128"),
        ({"x": np.ones((0, 4), np.float32)}, "an example of nothing"),
        ({"x": "text"}, "expected an array"),
    ):
        with pytest.raises(BadInput, match=message):
            from_module(module, given)
    with pytest.raises(Usage, match="no inputs are given"):
        from_module(module, {})
    with pytest.raises(BadInput, match="forward needs input mask"):
        from_module(modules.tagger(), {"input_ids": np.ones((2, 3), np.int64)})
    with pytest.raises(BadInput, match="does not run on its example: RuntimeError: mat1 and mat2"):
        look(from_module(module, {"x": np.ones((2, 5), np.float32)}))


def test_dimensions():
    assert dynamic_of(("x=batch,_", "y=,3")) == {"x": ("batch", None), "y": (None, 3)}
    for texts in (("x",), ("=batch",), ("x=a b",), ("x=a,_", "x=b,_")):
        with pytest.raises(Usage, match="--dynamic"):
            dynamic_of(texts)
    both = {"a": np.ones((2, 4)), "b": np.ones((3, 4))}
    module = nn.Bilinear(4, 4, 2)
    module.forward = lambda a, b: a.sum() + b.sum()
    for dynamic, message in (
        ({"c": ("n",)}, "--dynamic c, and the inputs are a, b"),
        ({"a": ("n",)}, "names 1 dimensions"),
        ({"a": ("n", 5)}, "is said to be 5, and is 4"),
        ({"a": ("n", None), "b": ("n", None)}, "n is 2 in a and 3 in b"),
    ):
        with pytest.raises(Usage, match=message):
            from_module(module, both, dynamic)


def test_dimensions_that_do_not_change():
    with pytest.raises(Unsupported, match="it runs at the sizes of the example alone: mat1 and mat2"):
        look(from_module(modules.Fixed(), X, {"x": (None, "width")}))
    with pytest.raises(Unsupported, match=r"(?s)torch\.export cannot trace it.*constant"):
        load_module(from_module(modules.Square(), X, {"x": ("rows", None)}))


def test_what_draws_at_random_is_refused_and_named():
    source = from_module(modules.Noisy(), {"x": np.ones((2, modules.HIDDEN), np.float32)})
    with pytest.raises(Unsupported, match=r"two answers on one input, first in noise\.0 \(_Noise\)"):
        look(source)


class Stubborn(nn.Linear):
    """What goes on training."""

    def train(self, mode: bool = True) -> "Stubborn":
        self.training = True
        return self


def test_what_goes_on_training_is_refused():
    with pytest.raises(Unsupported, match="0 still trains"):
        from_module(nn.Sequential(Stubborn(4, 4)), {"input": np.ones((2, 4))})


def test_a_state(tmp_path, inputs):
    options = ConvertOptions(inputs=inputs, state=str(tmp_path / "state.safetensors"))
    name, state = "tests.user.modules:Fixed", modules.Fixed().state_dict()
    save_file(state, tmp_path / "state.safetensors")
    source = open_module(name, options)
    assert torch.equal(source.module.inner.weight, state["inner.weight"])
    for other, message in (
        ({"inner.weight": state["inner.weight"]}, "1 weights of the module are missing, among them inner.bias"),
        (state | {"outer": torch.ones(1)}, "1 are none of the module's, among them outer"),
        (state | {"inner.bias": torch.ones(4)}, r"inner\.bias is \[4\], expected \[3\]"),
        (state | {"inner.bias": torch.full((3,), float("nan"))}, r"inner\.bias holds NaN"),
    ):
        save_file(other, tmp_path / "state.safetensors")
        with pytest.raises(BadInput, match=message):
            open_module(name, options)
    torch.save(state, tmp_path / "state.bin")
    with pytest.raises(BadInput, match=r"no \.safetensors file; pickles run code"):
        open_module(name, dataclasses.replace(options, state=str(tmp_path / "state.bin")))


def test_an_output_called_like_an_input_has_a_name_of_its_own():
    source = from_module(modules.Mixed(), {"x": np.ones((2, 3, modules.HIDDEN), np.float32)})
    assert list(run(source, source.inputs)) == ["x_out"]
    with pytest.raises(Usage, match="x, which is an input"):
        look(from_module(modules.Mixed(), {"x": np.ones((2, 3, modules.HIDDEN), np.float32)}, outputs=("x",)))


def test_a_state_in_which_one_weight_is_two(tmp_path):
    module = modules.Mixed()
    module.experts[1][0].weight = module.experts[0][0].weight
    state = {name: value.clone() for name, value in module.state_dict().items()}
    save_file(state, tmp_path / "same.safetensors")
    load_state(module, tmp_path / "same.safetensors")
    save_file(state | {"experts.1.0.weight": state["experts.1.0.weight"] + 1}, tmp_path / "two.safetensors")
    with pytest.raises(BadInput, match="are one weight of the module, and differ"):
        load_state(module, tmp_path / "two.safetensors")


def test_outputs():
    one, two = torch.ones(1), torch.ones(2)
    assert list(named(one)[0]) == ["output"]
    assert list(named((one, [two, 3]))[0]) == ["output_0", "output_1.output_0"]
    found, dropped = named({"a": modules.Pair(one, {"b": two}), "c": None, "d": 2})
    assert found == {"a.first": one, "a.second.b": two} and dropped == ["c (NoneType)", "d (int)"]
    assert list(named(torch.ones(2, 3).max(0), ("high", "at"))[0]) == ["high", "at"]
    with pytest.raises(Usage, match="it gives 2: output_0, output_1"):
        named((one, two), ("a",))
    with pytest.raises(Unsupported, match="no tensor but a int"):
        named(3)


def test_inputs_are_drawn_like_the_example():
    random = np.random.default_rng(0)
    ids = Likeness.of(np.array([[2, 5], [3, 9]])).draw({0: "n"}, {"n": 500}, random)
    assert ids.shape == (500, 2) and set(np.unique(ids)) == set(range(2, 10)) and ids.dtype == np.int64
    x = Likeness.of(random.normal(3, 2, (8, 50)).astype(np.float32)).draw({0: "n"}, {"n": 90}, random)
    assert abs(x.mean() - 3) < 0.2 and abs(x.std() - 2) < 0.2 and x.dtype == np.float32
    assert (Likeness.of(np.array([0.0, 5.0])).draw({}, {}, random) >= 0).all()
    assert set(np.unique(Likeness.of(np.array([True])).draw({0: "n"}, {"n": 50}, random))) == {False, True}


def test_tied_weights_are_there_once():
    weight = nn.Parameter(torch.arange(6.0).reshape(3, 2))
    weights = InMemory({"a": weight, "b": weight, "c": torch.ones(())}, label="own:")
    assert weights.recipe("b") == weights.recipe("a") and weights.nbytes == 28 and list(weights.entries) == ["a", "c"]
    read = weights.recipe("b").rows(weights.read, 1, 3)
    assert torch.equal(read, weight[1:3]) and read.data_ptr() != weight[1:].data_ptr()
    assert weights.recipe("c").evaluate(weights.read) == 1


def test_errors_are_of_the_kinds_that_have_a_code(inputs):
    for name in BAD:
        with pytest.raises(MocompError) as caught:
            open_module(name, ConvertOptions(inputs=inputs))
        assert caught.value.exit_code == 5 and Path(inputs).exists()
