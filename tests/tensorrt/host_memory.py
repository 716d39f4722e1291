"""CUDA memory for Polygraphy where there is no GPU."""

import ctypes
from typing import Any


class HostMemory:
    """Polygraphy's CUDA wrapper on the memory of the host."""

    def __init__(self) -> None:
        self.held: dict[int, Any] = {}

    def create_stream(self) -> int:
        return 1

    def stream_synchronize(self, stream: int) -> None:
        pass

    def destroy_stream(self, stream: int) -> None:
        pass

    def malloc(self, nbytes: int) -> int:
        buffer = ctypes.create_string_buffer(max(int(nbytes), 1))
        self.held[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    def free(self, address: int) -> None:
        self.held.pop(address, None)

    def memcpy(self, dst: int, src: int, nbytes: int, kind: Any, stream_ptr: int | None = None) -> None:
        ctypes.memmove(dst, src, int(nbytes))
