"""Features of an SAE, looked up in its index."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal, overload

from lensae._api.progress import ProgressFunction, as_progress
from lensae._api.store import Store, as_store
from lensae.core.paths import use_store
from lensae.core.records import Example, FeatureStats, LabelScore
from lensae.stages import features as lookup
from lensae.stages.features import FeatureReport
from lensae.stages.shared.progress import Progress


class Features:
    """The features of an SAE over its set: by default of the SAE whose training finished last.

    Its index is built first when it is missing or out of date, which `progress` shows; one that is up to date is only
    read. Raises UserError when there is no such SAE.
    """

    def __init__(
        self,
        store: Store | str | os.PathLike[str],
        *,
        set_name: str | None = None,
        sae_name: str | None = None,
        progress: Progress | ProgressFunction | None = None,
    ):
        self.store = as_store(store)
        with use_store(self.store.path):
            self._lookup = lookup.open_lookup(set_name, sae_name, as_progress(progress))

    def __repr__(self) -> str:
        return f"Features({self.store.path / self.set_name} {self.sae_name}, {len(self)} features)"

    def __len__(self) -> int:
        return self._lookup.index.features

    @property
    def set_name(self) -> str:
        """The set, as `set_name` takes it elsewhere."""
        return self._lookup.entry.name

    @property
    def sae_name(self) -> str:
        """The SAE, as `sae_name` takes it elsewhere."""
        return self._lookup.sae.name

    def top(self, feature: int, *, k: int = 20) -> Sequence[Example]:
        """The `k` strongest activations of a feature in different contexts, the strongest first.

        An Example has the `value`, the `token`, the whole `text` and its `label`. Raises UserError for a feature that
        does not exist.
        """
        return lookup.top(self._lookup, feature, k)

    def show(self, feature: int, *, k: int = 5) -> FeatureReport:
        """One feature: its figures (`stats`), the `tokens` it fires on most, its mean activation by label (`labels`),
        and its `k` strongest `examples`. Raises UserError for a feature that does not exist."""
        return lookup.show(self._lookup, feature, k)

    @overload
    def list(self, *, sort: Literal["density", "max", "mean"] = "density", k: int = 20) -> Sequence[FeatureStats]: ...

    @overload
    def list(self, *, sort: Literal["label"], k: int = 20) -> Sequence[LabelScore]: ...

    def list(self, *, sort: str = "density", k: int = 20) -> Sequence[FeatureStats] | Sequence[LabelScore]:
        """The first `k` features by `sort`: by how often they fire ("density") or how strongly ("max", "mean"), or by
        how well they tell one label of the documents from the others ("label").

        Features that never fire are left out. Raises UserError for another `sort`, and for "label" on a set whose
        documents have fewer than two labels.
        """
        return lookup.by_label(self._lookup, k) if sort == "label" else lookup.ranked(self._lookup, sort, k)
