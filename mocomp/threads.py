"""Torch's own threads, where tasks run side by side already."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


def only_one() -> None:
    """One thread for each operator of torch in this thread: more than there are cores would only spin, and how a sum is
    split among them would show in its last bits. Torch is left unloaded where nothing has loaded it."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)


@contextmanager
def one_thread() -> Iterator[None]:
    """The same, undone when the block ends."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
