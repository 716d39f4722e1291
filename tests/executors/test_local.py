"""Tasks in threads: each once, as many at once as are allowed, and an end that leaves nothing running."""

import itertools
import threading
import time

import pytest
import torch

from mocomp import terminal
from mocomp.errors import BadInput, MissingDependency, Usage
from mocomp.executors import QUEUED, open_executor
from mocomp.executors.local import Local
from mocomp.resources import Resources
from tests.executors.tasks import Counted, Fails, Marks, Square, Threads

MB = 1_000_000


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_every_task_is_done_once(workers):
    found = list(Local(Resources(workers=workers)).run(Square(i) for i in range(50)))
    assert sorted((task.number, result[0]) for task, result in found) == [(i, i * i) for i in range(50)]


def test_nothing_to_do():
    assert list(Local().run([])) == []


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_as_many_run_at_once_as_there_are_workers(workers):
    seen = [result[0] for _, result in Local(Resources(workers=workers)).run(Counted(1, 0.02) for _ in range(20))]
    assert max(seen) == workers


def test_no_more_memory_is_taken_than_may_be():
    sizes = [30, 50, 80, 10, 10, 10, 60, 40] * 4
    executor = Local(Resources("100MB", workers=4))
    seen = [result[1] / MB for _, result in executor.run(Counted(size * MB) for size in sizes)]
    assert 60 < max(seen) <= 100


def test_one_that_takes_more_than_all_runs_alone():
    sizes = (10, 500, 10, 10, 500)
    found = list(Local(Resources("100MB", workers=4)).run(Counted(size * MB) for size in sizes))
    assert [result for task, result in found if task.nbytes == 500 * MB] == [(1, 500 * MB)] * 2


def test_tasks_are_asked_for_as_they_are_needed():
    """A list of all parts of a large checkpoint is never held."""
    asked = itertools.count()
    running = Local(Resources(workers=2)).run(Square(next(asked)) for _ in range(1000))
    next(running)
    running.close()
    assert next(asked) <= 2 + QUEUED + 1


@pytest.mark.parametrize(("ours", "error"), [(False, BadInput), (True, ZeroDivisionError)])
def test_an_error_is_raised_when_the_others_have_ended(tmp_path, ours, error):
    marks = [Marks(tmp_path / f"{i}", 0.1) for i in range(2)]
    running = Local(Resources(workers=3)).run([*marks, Fails(ours), *(Square(i) for i in range(100))])
    with pytest.raises(error):
        list(running)
    assert all(mark.path.exists() for mark in marks)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("mocomp")]


def test_an_interruption_ends_it_soon(monkeypatch):
    monkeypatch.setattr(terminal, "_interrupted", True)
    begin = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        list(Local(Resources(workers=2)).run(Counted(1, 0.2) for _ in range(100)))
    assert time.perf_counter() - begin < 2 and not Counted.now


def test_torch_computes_with_one_thread_in_each():
    """How a sum is parted among threads shows in its last bits, and theirs beside ours would only be in the way."""
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert {result for _, result in Local(Resources(workers=2)).run(Threads() for _ in range(8))} == {1}
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


def test_an_executor_that_is_none():
    with pytest.raises(Usage, match="no executor 'abacus'; they are local, ray"):
        open_executor(Resources(executor="abacus"))


def test_without_ray_there_is_what_installs_it(monkeypatch):
    monkeypatch.setattr("mocomp.executors.ray.find_spec", lambda name: None)
    with pytest.raises(MissingDependency) as caught:
        open_executor(Resources(executor="ray"))
    assert caught.value.exit_code == 4 and caught.value.fix == "pip install 'mocomp[ray]'"
