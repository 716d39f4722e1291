"""What of an output is written already, so that a command that was cut short goes on where it was."""

from __future__ import annotations

from typing import Any


class Journal:
    """Parts that are done, by key, each with what there is to know of it, such as its checksum."""

    def __init__(self) -> None:
        self._done: dict[str, Any] = {}

    def known(self, key: str) -> Any | None:
        """What was told of a part when it was done; None for one that is not."""
        return self._done.get(key)

    def done(self, key: str, told: Any) -> None:
        """A part is on disk."""
        self._done[key] = told
