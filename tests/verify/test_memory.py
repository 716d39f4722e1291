"""A proof that cannot fit is refused before any long work, with the way out."""

import pytest

from mocomp.errors import Unsupported
from mocomp.verify import memory


def test_what_fits_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 10**9)
    memory.refuse_if_too_large(10**8, "here")


def test_what_does_not_fit_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 10**9)
    with pytest.raises(Unsupported, match="--parity off"):
        memory.refuse_if_too_large(2 * 10**8, "here")


def test_a_system_that_does_not_say_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: None)
    memory.refuse_if_too_large(10**15, "here")


def test_this_machine_says_something_sensible() -> None:
    free = memory.available()
    assert free is None or 10**8 < free < 10**14
