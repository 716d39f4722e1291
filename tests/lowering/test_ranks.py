"""Ranks cut out of artifacts of many kinds, together against the single model; and faults that are planted in them."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from mocomp import report as reports
from mocomp.errors import BadInput, Unsupported
from mocomp.lowering import ranks_files, ranks_gaps
from mocomp.lowering.onnx_session import load
from mocomp.lowering.ranks_runner import Ranks, read
from mocomp.models.interface import Interface
from mocomp.opening import reopen
from mocomp.options import ConvertOptions
from mocomp.pipeline import convert
from mocomp.quant.formats import parse
from mocomp.targets import Target
from mocomp.verify.inputs import Case, arrays
from mocomp.verify.measures import relative_error
from mocomp.verify.parity import run_case
from mocomp.weights.writer import Writer

CASES = (Case("a prompt", 1, 9), Case("two sequences", 2, 5), Case("a token after others", 2, 1, past=4), Case("a token", 1, 1))
KINDS = {
    "mixtral": ("mixtral", 2, {}),
    "uneven": ("gpt_oss", 3, {"target": "onnx"}),
    "shared experts": ("deepseek_v3", 4, {}),
    "int4": ("mixtral", 2, {"quantize": "int4", "group_size": 16}),
    "int4 with zero points, standard": ("mixtral", 3, {"target": "onnx", "quantize": "int4:asym"}),
    "tuned": ("mixtral", 2, {"tune": "1,8"}),
}


@dataclass
class Made:
    directory: Path
    target: Target
    mixtures: list
    interface: Interface

    def runs(self, ranks: Ranks | None = None):
        """(what the single model, what the ranks give) for each case."""
        single, together = self.target.open(self.directory, exact=True), ranks or Ranks(self.directory, exact=True)
        for case in CASES:
            given = arrays(self.interface, case, 3)
            one, all_of_them = (run_case(runner.run, self.interface, case, given)[1] for runner in (single, together))
            yield one, all_of_them

    def error(self) -> float:
        return max(relative_error(b[name], a[name]) for a, b in self.runs() for name in a)


@pytest.fixture(scope="module")
def made(checkpoint, tmp_path_factory):
    known: dict[str, Made] = {}

    def of(kind: str) -> Made:
        if kind not in known:
            family, ranks, options = KINDS[kind]
            directory = tmp_path_factory.mktemp("ranks") / "artifact"
            asked = ConvertOptions(expert_parallel=ranks, parity="off", **options)
            convert(str(checkpoint(family)), directory, asked)
            data = reports.read(directory)
            artifact = reports.artifact_from(data)
            known[kind] = Made(directory, reopen(data), artifact.mixtures, reports.interface_from(data))
        return known[kind]

    return of


@pytest.fixture
def copied(made, tmp_path):
    """The artifact of a kind, to do harm to."""

    def of(kind: str) -> Made:
        whole = made(kind)
        shutil.copytree(whole.directory, tmp_path / "copy")
        return Made(tmp_path / "copy", whole.target, whole.mixtures, whole.interface)

    return of


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_together_are_the_single_model(made, kind):
    assert made(kind).error() < 5e-6


@pytest.mark.parametrize("kind", KINDS)
def test_each_rank_is_whole_and_holds_its_share(made, kind):
    """Nothing of a rank lies outside its directory; its experts' weights are its part of all, and no more."""
    directory = made(kind).directory
    ranks = read(directory)
    assert len(ranks) == KINDS[kind][1]
    whole = bank_bytes(directory, ranks[0].mixtures)
    for rank in ranks:
        home = directory / f"rank_{rank.rank}"
        assert {path.name for path in home.iterdir()} == {
            *rank.pieces, *(cut.file for cut in rank.mixtures), ranks_files.DENSE, ranks_files.EXPERTS, ranks_files.INDEX,
        }  # fmt: skip
        used = {entry.value for file in home.glob("*.onnx") for entry in locations(file)}
        assert used == {ranks_files.DENSE, ranks_files.EXPERTS}
        share = sum(len(cut.experts) / cut.total * size for cut, size in zip(rank.mixtures, whole, strict=True))
        aligned = (home / ranks_files.EXPERTS).stat().st_size
        assert share <= aligned < share + 64 * 8 * len(whole)


def locations(file: Path):
    model = onnx.load(file, load_external_data=False)
    return [entry for t in model.graph.initializer for entry in t.external_data if entry.key == "location"]


def bank_bytes(directory: Path, cuts) -> list[float]:
    """The bytes of all experts of each mixture, by the sizes of what rank 0 holds of them."""
    sizes = []
    for i, cut in enumerate(cuts):
        stored = [value.const_value for value in load(directory / "rank_0", f"experts_{i}.onnx").graph.initializers.values()]
        held = sum(tensor.nbytes for tensor in stored if isinstance(tensor, ir.ExternalTensor))
        sizes.append(held / len(cut.experts) * cut.total)
    return sizes


def test_tokens_are_sent_only_where_their_experts_are(made):
    """A rank is given each token once, and not those that chose none of its experts."""
    ranks, seen = Ranks(made("mixtral").directory), {}
    exchange = ranks._exchanges[0]
    inner = exchange._run
    exchange._run = [lambda given, rank=i: seen.update({rank: given}) or inner[rank](given) for i in range(2)]
    x = np.random.default_rng(0).standard_normal((7, 64)).astype(np.float32)
    ids = np.array([[0, 1], [0, 2], [1, 3], [2, 0], [3, 1], [1, 5], [2, 3]])
    weights = np.full((7, 2), 0.5, np.float32)
    weights[6, 0] = 0  # not chosen
    exchange.run(x, ids, weights)
    for rank, given in seen.items():
        here = np.isin(ids, ranks.ranks[rank].mixtures[0].experts) & (weights > 0)
        assert np.array_equal(given["x"], x[here.any(1)]) and len(given["token"]) == here.sum()
    assert sorted(seen) == [0, 1]


def test_every_rank_is_a_home(made):
    """Calls go round, so that the copy of what all ranks have is run of each."""
    ranks = Ranks(made("uneven").directory)
    list(made("uneven").runs(ranks))
    assert sorted(ranks._pieces) == [0, 1, 2]
    assert 0 < ranks.moves.abroad < ranks.moves.choices and 0 < ranks.moves.crossed < ranks.moves.steps


def test_no_tokens_are_no_trouble(made):
    it = made("mixtral")
    exchange = Ranks(it.directory).mixture(it.mixtures[0].layer)
    nothing = exchange.run(np.zeros((0, 64), np.float32), np.zeros((0, 2), np.int64), np.zeros((0, 2), np.float32))
    assert nothing.shape == (0, 64)


def change(directory: Path, rank: int, what) -> None:
    file = directory / f"rank_{rank}" / ranks_files.INDEX
    data = json.loads(file.read_text())
    what(data)
    file.write_text(json.dumps(data))


def swap_within(data):
    first = data["mixtures"][0]["experts"]
    first[0], first[1] = first[1], first[0]


def test_experts_in_a_wrong_order_are_seen(copied):
    """A wrong local id."""
    it = copied("mixtral")
    change(it.directory, 0, swap_within)
    assert it.error() > 1e-3


def test_experts_swapped_between_ranks_are_seen(copied):
    it = copied("int4")
    one, two = (read(it.directory)[i].mixtures[0].experts[0] for i in (0, 1))
    for rank, other in ((0, two), (1, one)):
        change(it.directory, rank, lambda data, other=other: data["mixtures"][0]["experts"].__setitem__(0, other))
    assert it.error() > 1e-3


def test_weights_of_another_expert_are_seen(copied):
    it = copied("uneven")
    file = it.directory / "rank_1" / ranks_files.EXPERTS
    data = bytearray(file.read_bytes())
    data[: len(data) // 4] = (it.directory / "rank_0" / ranks_files.EXPERTS).read_bytes()[: len(data) // 4]
    file.write_bytes(data)
    assert it.error() > 1e-3


@pytest.mark.parametrize("fault", ["lost", "twice", "unweighed"])
def test_a_fault_of_the_exchange_is_seen(made, fault):
    """A partial sum that is lost, a choice that is sent twice, weights that are forgotten."""
    it = made("shared experts")
    ranks = Ranks(it.directory, exact=True)
    exchange = ranks._exchanges[-1]
    inner = exchange._run[1]

    def faulty(given):
        if fault == "twice":
            given = given | {n: np.append(given[n], given[n][:1]) for n in ("token", "expert", "weight")}
        if fault == "unweighed":
            given = given | {"weight": np.ones_like(given["weight"])}
        y = inner(given)["y"]
        return {"y": np.zeros_like(y) if fault == "lost" else y}

    exchange._run[1] = faulty
    assert max(relative_error(b[name], a[name]) for a, b in it.runs(ranks) for name in a) > 1e-3


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (lambda data: data["mixtures"][0]["experts"].__setitem__(0, 1), "on no rank, or on several"),
        (lambda data: data["mixtures"][0]["experts"].append(99), "on no rank, or on several"),
        (lambda data: data.__setitem__("rank", 1), "of another rank"),
        (lambda data: data["mixtures"][0].pop("x"), "does not say what it should"),
        (lambda data: data["mixtures"].pop(), "different models"),
        (lambda data: data["pieces"].pop(), "different models"),
        (lambda data: data["pieces"].__setitem__(0, "../../model.onnx"), "outside its directory"),
    ],
)
def test_ranks_that_do_not_make_a_model_are_refused(copied, what, message):
    it = copied("mixtral")
    change(it.directory, 0, what)
    with pytest.raises(BadInput, match=message):
        list(it.runs())


@pytest.mark.parametrize("lost", ["rank.json", "dense_1.onnx", "experts_0.onnx"])
def test_a_lost_file_is_told(copied, lost):
    it = copied("mixtral")
    (it.directory / "rank_1" / lost).unlink()
    with pytest.raises(BadInput, match=lost):
        list(it.runs())


def test_weights_that_lie_outside_are_refused(copied):
    it = copied("mixtral")
    file = it.directory / "rank_0" / "experts_0.onnx"
    model = onnx.load(file, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../model.onnx.data"
    onnx.save(model, file)
    with pytest.raises(BadInput, match="outside"):
        Ranks(it.directory)


def test_the_same_bytes_are_written_again(made, tmp_path):
    """And no more of an artifact is read at once than the writer asks for."""
    it = made("mixtral")
    shutil.copytree(it.directory, tmp_path / "again", ignore=shutil.ignore_patterns("rank_*"))
    data = reports.read(it.directory)
    graphs = it.target.rank_graphs(tmp_path / "again", reports.artifact_from(data))
    most = 0

    def watched(read):
        def rows(name, start, stop):
            nonlocal most
            got = read(name, start, stop)
            most = max(most, got.nbytes)
            return got

        return Writer(rows, buffer=1 << 12)

    names = ranks_files.write(graphs, tmp_path / "again", data["expert_parallel"]["experts"], watched)
    assert sorted(names) == sorted(data["expert_parallel"]["files"])
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (it.directory / name).read_bytes()
    assert most <= max(64 * 96 * 4, 1 << 12)  # one expert's rows


def test_experts_that_share_a_byte_are_refused(made, monkeypatch):
    """By the program, before any work, and by the graph, whatever it is made of."""
    form = parse("int4")
    monkeypatch.setattr(ranks_gaps.unfused, "packed", lambda program: {"w_in": (form, (4, 3, 5)), "w_out": (form, (4, 3, 6))})
    monkeypatch.setattr(ranks_gaps, "calls", lambda program, *targets: [])
    assert [gap.where for gap in ranks_gaps.of_calls(None, [])] == ["w_in"]  # type: ignore[arg-type]

    it = made("mixtral")
    seam = it.target.rank_graphs(it.directory, reports.artifact_from(reports.read(it.directory))).seams[0]
    whole, split = (
        ir.Value(name="codes", type=ir.TensorType(ir.DataType.UINT4), shape=ir.Shape([4, 3, size])) for size in (6, 5)
    )
    ranks_files._refuse_split_bytes(seam, [whole])
    with pytest.raises(Unsupported, match="whole bytes"):
        ranks_files._refuse_split_bytes(seam, [whole, split])
