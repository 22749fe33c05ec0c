"""A file in memory for h5py to write to, without a copy at the end.

HDF5's own driver for this (core) knows its files by name, so two threads cannot each have one of the same name open,
grows them bit by bit and hands out a copy.
"""

from __future__ import annotations

import os

import numpy as np


class MemoryFile:
    """A file in memory that HDF5 writes to, in pages that need no copying afterwards; bytes never written are 0."""

    def __init__(self, size: int):
        self._bytes = np.empty(size + size // 16 + 2**16, np.uint8)
        self._at = self._end = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._end}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def truncate(self, size: int) -> int:
        self._fill(size)
        self._end = size
        return size

    def write(self, data) -> int:
        self._fill(self._at, room=len(data))
        self._bytes.data[self._at : self._at + len(data)] = data
        self._at += len(data)
        self._end = max(self._end, self._at)
        return len(data)

    def _fill(self, size: int, room: int = 0) -> None:
        """Zeros from the end up to `size`, and place for `room` bytes behind."""
        if size + room > len(self._bytes):
            self._bytes = np.concatenate([self._bytes[: self._end], np.empty(size + room, np.uint8)])
        if size > self._end:
            self._bytes[self._end : size] = 0

    def readinto(self, target) -> int:
        count = max(0, min(len(target), self._end - self._at))
        target[:count] = self._bytes.data[self._at : self._at + count]
        self._at += count
        return count

    def read(self, size: int) -> bytes:
        found = bytearray(size)
        return bytes(found[: self.readinto(found)])

    def flush(self) -> None:
        """Nothing is held back."""

    def content(self) -> memoryview:
        """What was written."""
        return self._bytes.data[: self._end]
