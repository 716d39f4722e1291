"""What is said of ONNX Runtime, seen: on CUDA where there is a GPU, on the CPU everywhere."""

import numpy as np
import pytest

from tests.gpu.facts import Fact, outcome, rows, table
from tests.gpu.mixture_graphs import Bank, moe
from tests.gpu.onnxruntime_facts import FACTS


@pytest.mark.gpu
@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.name)
def test_on_cuda(fact):
    """A fact that is only told of is reported; one from which something follows has to hold."""
    seen = fact.see("cuda")
    assert fact.holds("cuda", seen) is not False, f"{fact.says}: expected {fact.gpu}, seen {seen}"
    assert not seen.startswith("failed"), seen


@pytest.mark.parametrize("fact", [fact for fact in FACTS if fact.cpu], ids=lambda fact: fact.name)
def test_on_the_cpu(fact):
    seen = fact.see("cpu")
    assert fact.holds("cpu", seen), f"{fact.says}: expected {fact.cpu}, seen {seen}"


def test_a_wrong_result_is_seen():
    """The rows of one expert too few, of the wrong expert, of up in place of gate: each is told from rounding."""
    for spoil in (lambda b: b.down[0].fill(0), lambda b: b.gate.__setitem__(0, b.gate[1]), _swap):
        bank = Bank()
        model = moe(bank, "float32")
        spoil(bank)
        assert outcome(model, {"x": bank.x, "logits": bank.logits}, bank.expected(), "cpu").startswith("wrong")


def _swap(bank):
    bank.gate, bank.up = bank.up, bank.gate


def test_outcomes_that_are_no_numbers_are_told_apart():
    bank = Bank()
    bank.down[:] = np.inf
    feeds = {"x": bank.x, "logits": bank.logits}
    assert outcome(moe(bank, "float32"), feeds, np.zeros_like(bank.x), "cpu").startswith("not finite")
    assert outcome(b"no model", feeds, bank.x, "cpu").startswith("refused")


def _broken(device):
    raise RuntimeError("no such thing")


def test_the_table_says_which_facts_do_not_hold():
    facts = [
        Fact("one", "is so", lambda device: "right", cpu="right"),
        Fact("two", "is not so", lambda device: "wrong: 0.5 off", cpu="right"),
        Fact("three", "nobody knows", lambda device: "right"),
        Fact("four", "cannot be seen", _broken, cpu="right"),
    ]
    found = rows(facts, "cpu")
    assert [row["holds"] for row in found] == [True, False, None, False]
    assert found[3]["seen"] == "failed: RuntimeError: no such thing"
    assert [line.split()[0] for line in table(found).splitlines()] == ["as", "DIFFERS", "told", "DIFFERS"]
