"""A file in memory that h5py writes to, read out at the end without a copy.

HDF5's own driver for this ("core") identifies files by name, so that two threads cannot each have one of the same name
open; it also grows them in small steps and returns a copy.
"""

from __future__ import annotations

import os

import numpy as np


class MemoryFile:
    """A growing file in memory with the interface of a Python file object; bytes that were never written are 0."""

    def __init__(self, size: int):
        self._buffer = np.empty(size + size // 16 + 2**16, np.uint8)
        self._position = self._end = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position and return it."""
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._end}[whence]
        return self._position

    def tell(self) -> int:
        """The position."""
        return self._position

    def truncate(self, size: int) -> int:
        """Cut or extend the file to `size` bytes."""
        self._extend(size)
        self._end = size
        return size

    def write(self, data: bytes | memoryview) -> int:
        """Write `data` at the position."""
        self._extend(self._position, reserve=len(data))
        self._buffer.data[self._position : self._position + len(data)] = data
        self._position += len(data)
        self._end = max(self._end, self._position)
        return len(data)

    def _extend(self, size: int, reserve: int = 0) -> None:
        """Write zeros from the end up to `size`, and make the buffer hold `reserve` bytes more."""
        if size + reserve > len(self._buffer):
            self._buffer = np.concatenate([self._buffer[: self._end], np.empty(size + reserve, np.uint8)])
        if size > self._end:
            self._buffer[self._end : size] = 0

    def readinto(self, target: memoryview | bytearray) -> int:
        """Read into a writable buffer from the position on; returns how many bytes there were."""
        count = max(0, min(len(target), self._end - self._position))
        target[:count] = self._buffer.data[self._position : self._position + count]
        self._position += count
        return count

    def read(self, size: int) -> bytes:
        """Up to `size` bytes from the position on."""
        data = bytearray(size)
        return bytes(data[: self.readinto(data)])

    def flush(self) -> None:
        """Nothing is buffered elsewhere."""

    def content(self) -> memoryview:
        """Everything that was written, without a copy."""
        return self._buffer.data[: self._end]
