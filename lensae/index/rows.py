"""The features of each row of a shard, as they are encoded and as they are kept on disk.

Shapes: P firings, T rows, F features; a 1 behind a letter is one more.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lensae.index.file import create, open_file, write_array
from lensae.index.tables import Firings


@dataclass(frozen=True, kw_only=True)
class EncodedRows:
    """The features that fire on each row of a shard: those of row t are the entries indptr_T1[t] ... indptr_T1[t + 1]
    - 1 of feature_P and value_P, in no order; values are above 0."""

    indptr_T1: np.ndarray
    feature_P: np.ndarray
    value_P: np.ndarray
    features: int

    def write(self, path: Path, source: str) -> None:
        """Write the rows file of a shard."""
        with create(path, {"source": source, "rows": len(self.indptr_T1) - 1, "features": self.features}) as file:
            for name, array in (("indptr", self.indptr_T1), ("feature", self.feature_P), ("value", self.value_P)):
                write_array(file, name, array)

    @staticmethod
    def read(path: Path) -> EncodedRows:
        """What `write` wrote."""
        with open_file(path) as file:
            indptr_T1, feature_P, value_P = (file[name][...] for name in ("indptr", "feature", "value"))
            features = int(file.attrs["features"])
        return EncodedRows(indptr_T1=indptr_T1, feature_P=feature_P, value_P=value_P, features=features)

    def by_feature(self) -> Firings:
        """The same by feature."""
        from scipy.sparse import csr_array

        rows = len(self.indptr_T1) - 1
        columns = csr_array((self.value_P, self.feature_P, self.indptr_T1), shape=(rows, self.features)).tocsc()
        feature_P = np.repeat(np.arange(self.features, dtype=np.int32), np.diff(columns.indptr))
        return Firings(
            indptr_F1=columns.indptr, feature_P=feature_P, row_P=columns.indices, value_P=columns.data, rows=rows
        )
