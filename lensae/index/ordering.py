"""Sorting of whole numbers, several times as fast as numpy's general sorts.

Shapes: N entries.
"""

from __future__ import annotations

import sys

import numpy as np

POSITIVE_FLOAT_BITS = 0x7FFFFFFF


def stable_order(key_N: np.ndarray) -> np.ndarray:
    """`np.argsort(key_N, kind="stable")` for whole numbers, by torch where it is loaded.

    Its radix sort is four times as fast as numpy's for numbers in no order (measured on 930,000 postings); for a few
    sorted runs one after the other numpy's is faster.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return np.argsort(key_N, kind="stable")
    return torch.sort(torch.from_numpy(key_N), stable=True).indices.numpy()


def combined_key(first_N: np.ndarray, second_N: np.ndarray, count: int) -> np.ndarray:
    """Whole numbers (N,) that order pairs by the first and then by the second, which is less than `count`; of 32 bits,
    which sort faster, where they fit."""
    fits = int(first_N.max(initial=0) + 1) * count < 2**31
    return first_N.astype(np.int32 if fits else np.int64) * count + second_N


def falling_key(value_N: np.ndarray) -> np.ndarray:
    """Whole numbers (N,) that rise as the positive float32 values fall: the bits of such a float rise with it."""
    return POSITIVE_FLOAT_BITS - value_N.view(np.int32)


def group_starts(*columns: np.ndarray) -> np.ndarray:
    """Where a run of entries begins that are equal in every column (the columns are sorted alike)."""
    if not len(columns[0]):
        return np.zeros(0, np.int64)
    new_N = np.ones(len(columns[0]), bool)
    new_N[1:] = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    return np.flatnonzero(new_N)


def rank_in_group(group_N: np.ndarray) -> np.ndarray:
    """The number (N,) of each entry among those of its group, counted from 0 (`group_N` is sorted)."""
    starts = group_starts(group_N)
    return np.arange(len(group_N)) - np.repeat(starts, np.diff(np.append(starts, len(group_N))))


def indptr_of(group_N: np.ndarray, groups: int) -> np.ndarray:
    """Where the entries of each group begin and end (groups + 1,) int64, the entries being sorted by group."""
    return np.concatenate([[0], np.cumsum(np.bincount(group_N, minlength=groups))]).astype(np.int64)


def expand_ranges(start_N: np.ndarray, length_N: np.ndarray) -> np.ndarray:
    """All numbers of the ranges start ... start + length - 1, one range after the other."""
    total = np.cumsum(length_N)
    count = int(total[-1]) if len(total) else 0
    return np.arange(count) + np.repeat(start_N - (total - length_N), length_N)
