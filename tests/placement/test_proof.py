"""What proves ranks: copies that are the same on all of them, and the single model, judged by sequence and margin."""

import shutil

import numpy as np
import onnx
import pytest

from mocomp.commands.parity import opened
from mocomp.errors import BadInput
from mocomp.lowering.onnx_session import load
from mocomp.lowering.ranks_files import DENSE
from mocomp.lowering.ranks_runner import Ranks, read
from mocomp.options import ConvertOptions
from mocomp.pipeline import convert
from mocomp.placement.copies import unlike
from mocomp.placement.proof import compare
from mocomp.verify.inputs import Case, arrays
from mocomp.verify.parity import inner_values

RANKS = 8
TWO, ONE = Case("two sequences", 2, 5), Case("a prompt", 1, 6)


@pytest.fixture(scope="module")
def made(checkpoint, tmp_path_factory):
    directory = tmp_path_factory.mktemp("ranks") / "artifact"
    convert(str(checkpoint("mixtral")), directory, ConvertOptions(expert_parallel=RANKS, parity="off"))
    return directory


def harm_head(home):
    """Change one number of the head's weights in a rank's copy."""
    last = max(home.glob("dense_*.onnx"), key=lambda file: int(file.stem.removeprefix("dense_")))
    stored = load(home, last.name).graph.initializers
    largest = max((value.const_value for value in stored.values()), key=lambda tensor: tensor.nbytes)
    data = np.memmap(home / DENSE, np.float32, "r+", offset=largest.offset, shape=(largest.nbytes // 4,))
    data[len(data) // 2] += 1.0
    data.flush()


@pytest.mark.parametrize("rank", range(RANKS))
def test_a_copy_that_is_another_is_seen_on_every_rank(made, tmp_path, rank):
    """However few calls there are, fewer than ranks."""
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    assert unlike(copy, read(copy)) == []
    harm_head(copy / f"rank_{rank}")
    others = [rank] if rank else range(1, RANKS)
    assert unlike(copy, read(copy)) == [
        f"the ranks differ: {DENSE} of rank {i} is not that of rank 0, and all have the same" for i in others
    ]


def test_a_graph_that_is_another_is_seen(made, tmp_path):
    shutil.copytree(made, tmp_path / "copy")
    file = tmp_path / "copy" / "rank_5" / "dense_1.onnx"
    model = onnx.load(file, load_external_data=False)
    model.doc_string = "another"
    onnx.save(model, file)
    assert "dense_1.onnx of rank 5" in unlike(tmp_path / "copy", read(tmp_path / "copy"))[0]
    file.unlink()
    with pytest.raises(BadInput, match=r"dense_1\.onnx"):
        unlike(tmp_path / "copy", read(tmp_path / "copy"))


def test_a_harmed_copy_fails_the_proof(command, made, tmp_path):
    shutil.copytree(made, tmp_path / "copy")
    assert command("parity", tmp_path / "copy", "--ranks").code == 0
    harm_head(tmp_path / "copy" / f"rank_{RANKS - 1}")
    done = command("parity", tmp_path / "copy", "--ranks")
    assert done.code == 1 and f"{DENSE} of rank {RANKS - 1}" in done.out


class Rounding:
    """Ranks where rounding chose another expert for the first token of the first sequence, and so gave another output for all
    of it; `by` is how far its score is above the one it displaces, relatively."""

    def __init__(self, ranks, mixture, by):
        self.ranks, self.mixture, self.by = ranks, mixture, by

    def run(self, inputs):
        values, m = self.ranks.run(inputs), self.mixture
        scores = values[m.logits].copy()
        order = np.argsort(-scores[0])
        scores[0, order[m.k]] = scores[0, order[m.k - 1]] + self.by * np.abs(scores[0]).max()
        return values | {m.logits: scores, "logits": np.concatenate([values["logits"][:1] * 2, values["logits"][1:]])}


@pytest.mark.parametrize(
    ("cases", "by", "failure"),
    [
        ([TWO, ONE], None, None),
        ([TWO], 1e-6, None),
        ([ONE], 1e-6, "in every sequence some expert flipped, so nothing could be compared end to end"),
        ([TWO], 0.1, "chose other experts, beyond the margin"),
    ],
)
def test_is_judged_by_sequence_and_margin(made, cases, by, failure):
    one = opened(made)
    ranks = Ranks(made, inner_values(one.artifact.mixtures), exact=True)
    given = [(case, arrays(one.interface, case, 1)) for case in cases]
    run = ranks if by is None else Rounding(ranks, one.artifact.mixtures[-1], by)
    found = compare(one, run, given)
    assert [failure in told for told in found.failures] == [True] if failure else found.failures == []
    assert found.worst < 1e-4
