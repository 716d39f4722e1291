"""Runs of one model in step: each part is brought in once for all runs that want it, and a failure ends them all."""

import threading

import pytest

from mocomp.verify.turns import Turns


class Shelf:
    """Parts that are there one at a time; `brought` is the order in which they came."""

    def __init__(self) -> None:
        self.brought: list[str] = []
        self.turns = Turns(self.brought.append)

    def through(self, parts: str, times: int = 1):
        """A run through these parts, that checks in each that it is the one there; it gives what it came through."""

        def run() -> str:
            came = ""
            for part in parts * times:
                self.turns.want(part)
                assert self.turns.here == self.brought[-1] == part
                came += part
            return came

        return run


def test_parts_come_once_for_all_runs_and_results_keep_their_order():
    shelf = Shelf()
    assert shelf.turns.run([shelf.through("abc"), shelf.through("ac"), shelf.through("abc")]) == ["abc", "ac", "abc"]
    assert shelf.brought == ["a", "b", "c"]


def test_a_run_that_begins_anew_waits_until_the_others_are_through():
    shelf = Shelf()
    shelf.turns.run([shelf.through("abc", times=2), shelf.through("abc"), shelf.through("abc", times=2)])
    assert shelf.brought == [*"abcabc"]


def test_who_wants_a_part_outside_of_all_runs_has_it_brought():
    shelf = Shelf()
    shelf.turns.want("b")
    shelf.turns.want("b")
    assert shelf.brought == ["b"]


def test_what_a_run_raises_comes_out_and_ends_the_others():
    shelf, before = Shelf(), threading.active_count()

    def fails() -> str:
        shelf.turns.want("a")
        raise KeyError("lost")

    with pytest.raises(KeyError, match="lost"):
        shelf.turns.run([shelf.through("abc"), fails, shelf.through("abc")])
    assert threading.active_count() == before
    assert shelf.turns.run([shelf.through("abc")]) == ["abc"]


def test_what_bringing_raises_comes_out():
    def full(part: str) -> None:
        raise OSError(part)

    turns, before = Turns(full), threading.active_count()
    with pytest.raises(OSError, match="a"):
        turns.run([lambda: turns.want("a")] * 2)
    assert threading.active_count() == before and turns.here is None
