"""features: from a feature to its activations, their tokens and the text around them. Nothing here loads torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np

from lensae.core.errors import UserError
from lensae.core.paths import SaeEntry, SetEntry, find_pair
from lensae.core.records import Example, FeatureStats, LabelScore, Posting
from lensae.index.query import Index
from lensae.store.reader import SetReader
from lensae.store.shard import Shard

SORTS = ("density", "max", "mean")


@dataclass(frozen=True)
class Lookup:
    """An index with the set it is over."""

    entry: SetEntry
    sae: SaeEntry
    reader: SetReader
    index: Index


@dataclass(frozen=True)
class TokenUse:
    """One token under a feature: how often the feature fires on it, of how many times it occurs."""

    token: str
    fires: int
    occurs: int
    mean: float


@dataclass(frozen=True)
class FeatureReport:
    """Everything `features show` knows of a feature."""

    stats: FeatureStats
    tokens: tuple[TokenUse, ...]
    labels: tuple[tuple[str, float], ...]
    examples: tuple[Example, ...]


def open_lookup(set_name: str | None = None, sae_name: str | None = None) -> Lookup:
    """Find the set, the SAE and its index; raises UserError saying what is missing and which command makes it."""
    entry, sae = find_pair(set_name, sae_name)
    reader = SetReader(entry)
    return Lookup(entry, sae, reader, Index(sae.index_path, reader.shards))


def top(lookup: Lookup, feature: int, k: int = 20) -> list[Example]:
    """The `k` strongest activations of `feature` in different contexts.

    Samples of one prompt share its tokens, whose activations are then equal: such copies are shown once and counted.
    """
    _check_count(k)
    found: dict[tuple[str, int], Example] = {}
    with ExitStack() as stack:
        shards: dict[int, Shard] = {}
        for posting in lookup.index.postings(feature):
            if posting.shard not in shards:
                shards[posting.shard] = stack.enter_context(lookup.reader.shard(posting.shard))
            example = _example(shards[posting.shard], posting)
            context = (example.text[: example.span.end], example.span.position)
            if context in found:
                found[context] = replace(found[context], copies=found[context].copies + 1)
            elif len(found) == k:
                break
            else:
                found[context] = example
    return list(found.values())


def _check_count(k: int) -> None:
    if k < 1:
        raise UserError(f"--k cannot be {k}", "1 or more")


def _example(shard: Shard, posting: Posting) -> Example:
    span = shard.span(posting.row)
    text, prompt, label = (shard.text(name, span.document) for name in ("text", "prompt", "label"))
    first = int(shard.attrs["first_document"])
    return Example(posting.value, posting.shard, posting.row, first + span.document, span, text, label, prompt)


def show(lookup: Lookup, feature: int, k: int = 5) -> FeatureReport:
    """One feature: its figures, the tokens it fires on most, its activation by label, and its strongest examples."""
    stats = lookup.index.stats(feature)
    return FeatureReport(
        stats,
        tuple(_token_use(lookup, feature)[:10]),
        tuple(_label_means(lookup, feature)),
        tuple(top(lookup, feature, k)) if stats.count else (),
    )


def _token_use(lookup: Lookup, feature: int) -> list[TokenUse]:
    """The tokens with the most total activation."""
    total: dict[int, list] = {}
    for number, (rows, values) in enumerate(lookup.index.all_postings(feature)):
        if len(rows):
            with lookup.reader.shard(number) as shard:
                _add_tokens(total, shard, rows, values)
    occurs = _occurrences(lookup, total) if total else {}
    ranked = sorted(total.items(), key=lambda item: -item[1][1])[:10]
    return [TokenUse(text, fires, occurs[token], mass / fires) for token, (fires, mass, text) in ranked]


def _add_tokens(total: dict[int, list], shard: Shard, rows: np.ndarray, values: np.ndarray) -> None:
    ids = shard.read("token_id")[rows]
    for token in np.unique(ids):
        here = ids == token
        if token not in total:
            span = shard.span(int(rows[here][0]))
            total[int(token)] = [0, 0.0, shard.text("text", span.document)[span.start : span.end]]
        total[int(token)][0] += int(here.sum())
        total[int(token)][1] += float(values[here].sum())


def _occurrences(lookup: Lookup, tokens) -> dict[int, int]:
    counts = dict.fromkeys(tokens, 0)
    for number in range(len(lookup.reader.shards)):
        with lookup.reader.shard(number) as shard:
            ids, times = np.unique(shard.read("token_id"), return_counts=True)
        for token, count in zip(ids.tolist(), times.tolist(), strict=True):
            if token in counts:
                counts[token] += count
    return counts


def _label_means(lookup: Lookup, feature: int) -> list[tuple[str, float]]:
    """The feature's mean activation over all tokens of each label, falling; nothing for a set without labels."""
    mass: dict[str, float] = {}
    rows_of: dict[str, int] = {}
    for number, (rows, values) in enumerate(lookup.index.all_postings(feature)):
        with lookup.reader.shard(number) as shard:
            names, code = np.unique(np.array(shard.texts("label")), return_inverse=True)
            length = np.diff(shard.read("documents/start"))
            document = shard.read("document")[rows]
        per_label = np.bincount(code[document], values, len(names)), np.bincount(code, length, len(names))
        for name, total, count in zip(names.tolist(), *per_label, strict=True):
            mass[name] = mass.get(name, 0.0) + float(total)
            rows_of[name] = rows_of.get(name, 0) + int(count)
    means = [(label, mass[label] / n) for label, n in rows_of.items() if label and n]
    return sorted(means, key=lambda item: -item[1])


def feature_label(lookup: Lookup, feature: int) -> str:
    """The label on whose tokens the feature is most active, or "" for a set with fewer than two labels."""
    means = _label_means(lookup, feature)
    return means[0][0] if len(means) > 1 and means[0][1] > 0 else ""


def ranked(lookup: Lookup, sort: str = "density", k: int = 20) -> list[FeatureStats]:
    """The first `k` features by `sort`."""
    _check_count(k)
    if sort not in SORTS:
        raise UserError(f"features cannot be sorted by '{sort}'", "by label, " + ", ".join(SORTS))
    return lookup.index.ranked(sort, k)


def by_label(lookup: Lookup, k: int = 20) -> list[LabelScore]:
    """The `k` features that best tell one label of the set from the others."""
    from lensae.interpret.labels import label_scores, strongest_per_document

    _check_count(k)
    labels: list[str] = []
    columns: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for number, document, feature, value in _triples(lookup):
        with lookup.reader.shard(number) as shard:
            columns.append((document + len(labels), feature, value))
            labels += shard.texts("label")
    document, feature, value = (np.concatenate(column) for column in zip(*columns, strict=True))
    scores = label_scores(
        strongest_per_document(len(labels), lookup.index.features, document, feature, value), labels, k
    )
    if not scores:
        raise UserError(
            f"the documents of {lookup.entry.name} have fewer than two labels", "sort by density, max or mean"
        )
    return scores


def _triples(lookup: Lookup) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """For each shard: (number, document, feature, value) of every posting, in order of rows."""
    for number in range(len(lookup.reader.shards)):
        indptr, feature, value = lookup.index.by_row(number)
        with lookup.reader.shard(number) as shard:
            document = np.repeat(shard.read("document"), np.diff(indptr))
        yield number, document, feature, value
