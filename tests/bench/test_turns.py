"""Summaries, turns of processes, and comparisons, on processes and numbers of the tests' own."""

import json
import time
from typing import ClassVar

import pytest

from mocomp.bench import turns as turns_module
from mocomp.bench.comparison import compare, earlier, ratios
from mocomp.bench.points import Point
from mocomp.bench.prepared import Prepared
from mocomp.bench.subjects import OURS, Subject
from mocomp.bench.turns import Taken, Turns, disturbance, summary
from mocomp.bench.worker import Timed
from mocomp.errors import BadInput, Unsupported


def test_the_spread_is_that_of_the_runs():
    ms = summary([list(range(1, 12)), list(range(1, 12))])
    assert (ms["median"], ms["p10"], ms["p90"], ms["runs"]) == (6, 2, 10, 22)
    assert (ms["low"], ms["high"]) == (2, 10)


def test_rounds_that_are_further_apart_widen_the_spread():
    ms = summary([[5.0] * 20, [5.0] * 20, [9.0], [1.0]])
    assert (ms["p10"], ms["p90"]) == (5, 5)
    assert (ms["low"], ms["high"]) == (1, 9)


class Told(Timed):
    """Takes long for every run, or for every other one, and those are the runs during which others get the processor."""

    def __init__(self, every):
        self.every, self.runs, self.asked, self.switches = every, 0, 0, 0

    def ready(self, file):
        return lambda: self.run

    def run(self):
        self.runs += 1
        time.sleep(0.02 if self.disturbed else 0.001)

    @property
    def disturbed(self):
        return self.runs % self.every == 0

    def interruptions(self):
        self.asked += 1
        self.switches += self.asked % 2 == 0 and self.disturbed  # asked before and after each run
        return self.switches


@pytest.mark.parametrize("every", [1, 2])
def test_runs_that_others_disturbed_are_left_out_where_enough_are_left(monkeypatch, every):
    subject = Told(every)
    monkeypatch.setattr("mocomp.bench.worker.interruptions", subject.interruptions)
    answer = subject.answer({"file": "", "seconds": 0.1, "fewest": 3})
    slow = [ms for ms in answer["ms"] if ms >= 20]
    if every == 2:
        assert not slow and answer["disturbed"] >= 3
        assert len(answer["ms"]) == answer["runs"] - answer["disturbed"] >= 3
    else:
        assert slow == answer["ms"] and len(slow) == answer["disturbed"] == answer["runs"] >= 3


def test_a_machine_that_others_use_is_told_of():
    assert disturbance({OURS: Taken(runs=100, disturbed=5), "gone": Taken(error="why")}) == []
    (note,) = disturbance({OURS: Taken(runs=10**6), "torch eager": Taken(runs=100, disturbed=30)})
    assert "during 30% of the runs of torch eager;" in note


class Fake:
    """A process that needs no time; `failing` names the subjects that fail, when they are asked so often."""

    started: ClassVar[list] = []
    start_s = 0.1
    failing: ClassVar[dict] = {}

    def __init__(self, told, cpus):
        Fake.started.append(told["name"])
        self.name, self.ready_s, self.rounds, self.asked, self.closed = told["name"], self.start_s, 0, 0, False
        self.hello = {"load_s": self.start_s, "words": "fake", "imports_gb": 0.1}

    def ask(self, **request):
        self.asked += 1
        if Fake.failing.get(self.name) == self.asked:
            raise Unsupported("no memory left", where=self.name)
        return {"ms": [1.0, 2.0, 3.0], "runs": 3, "disturbed": 0, "warm_up_s": 0.0, "peak_gb": 0.2}

    def close(self):
        self.closed = True


def taken_of(monkeypatch, tmp_path, start_s=0.1, failing=None, rounds=6):
    monkeypatch.setattr(turns_module, "Worker", Fake)
    Fake.started, Fake.start_s, Fake.failing = [], start_s, failing or {}
    subjects = [Subject(name, {"name": name}) for name in (OURS, "torch eager")]
    taken = {subject.name: Taken() for subject in subjects}
    prepared = [Prepared(Point(1, length), tmp_path / "x.npz", {}) for length in (1, 2)]
    with Turns(subjects, taken, [0], rounds) as turns:
        for _ in range(rounds):
            turns.round(prepared, 0.1, lambda count: None)
        workers = list(turns._workers.values())
    assert all(worker.closed for worker in workers)
    return taken


@pytest.mark.parametrize(("start_s", "processes"), [(0.1, 6), (10.0, 3), (100.0, 1)])
def test_processes_are_started_anew_as_often_as_is_cheap(monkeypatch, tmp_path, start_s, processes):
    taken = taken_of(monkeypatch, tmp_path, start_s)
    assert Fake.started.count(OURS) == processes == len(taken[OURS].loads)
    assert [len(rounds) for rounds in taken[OURS].times.values()] == [6, 6]


def test_a_baseline_that_fails_drops_out_with_its_reason(monkeypatch, tmp_path):
    taken = taken_of(monkeypatch, tmp_path, failing={"torch eager": 2})
    assert taken["torch eager"].as_json() == {"error": "no memory left"}
    assert [len(rounds) for rounds in taken[OURS].times.values()] == [6, 6]


def test_the_artifact_itself_may_not_fail(monkeypatch, tmp_path):
    with pytest.raises(Unsupported, match="no memory left"):
        taken_of(monkeypatch, tmp_path, failing={OURS: 1})


def point(subject, median, low, high, sequence=1):
    at = Point(1, sequence).as_json()
    return {"subject": subject, **at, "ms": {"median": median, "p10": low, "p90": high, "low": low, "high": high}}


def test_ratios_are_of_the_artifact_to_each_baseline():
    points = [point(OURS, 2, 1, 3), point(OURS, 3, 1, 4, 8), point("torch eager", 8, 7, 9), point("torch eager", 30, 1, 99, 8)]
    assert [(r["workload"], r["against"], r["ratio"]) for r in ratios(points)] == [
        ("1 token", "torch eager", 0.25),
        ("8 tokens", "torch eager", 0.1),
    ]


@pytest.mark.parametrize(
    ("new", "verdict", "within"),
    [
        ((2.5, 2, 3), "same", True),
        ((5, 4, 6), "slower", False),
        ((0.5, 0.4, 0.6), "faster", False),
        ((3.2, 2.9, 4), "same", True),
    ],
)
def test_points_differ_where_their_spreads_do_not_overlap(new, verdict, within):
    old = [point(OURS, 2, 1.5, 3), point(OURS, 2, 1.5, 3, 8)]
    (told,) = compare([point(OURS, *new), point("torch eager", 1, 1, 1)], old)
    assert (told["verdict"], told["within"]) == (verdict, within)
    assert told["ratio"] == pytest.approx(new[0] / 2)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"points": [{}]}', json.dumps({"points": [point(OURS, "x", 1, 2)]})])
def test_what_is_no_earlier_benchmark_is_refused(tmp_path, text):
    file = tmp_path / "old.json"
    file.write_text(text)
    with pytest.raises(BadInput, match="no benchmark"):
        earlier(file)
    with pytest.raises(BadInput, match="no benchmark"):
        earlier(tmp_path / "none.json")
