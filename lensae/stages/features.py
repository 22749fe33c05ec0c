"""features: from a feature to its activations, their tokens and the text around them. Nothing here loads torch, unless
an index has to be built first."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace

from lensae.core.errors import UserError
from lensae.core.paths import SaeEntry, SetEntry, find_pair
from lensae.core.records import Example, FeatureStats, LabelScore, Posting
from lensae.index.query import Index, TokenUse
from lensae.stages.index import bring_up_to_date, why_out_of_date
from lensae.stages.shared.progress import Progress, Silent
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
class FeatureReport:
    """Everything `features show` knows of a feature."""

    stats: FeatureStats
    tokens: tuple[TokenUse, ...]
    labels: tuple[tuple[str, float], ...]
    examples: tuple[Example, ...]


def open_lookup(set_name: str | None = None, sae_name: str | None = None, progress: Progress | None = None) -> Lookup:
    """Find the set and the SAE, and open its index, which is built first when it is missing or out of date.

    Raises UserError when there is no such set or SAE, with the command that makes one. With an index that is up to date
    nothing is written and no lock is taken.
    """
    entry, sae = find_pair(set_name, sae_name)
    reader = SetReader(entry)
    if reason := why_out_of_date(reader, sae):
        progress = progress or Silent()
        progress.say(f"the feature index of {sae.name} {reason}: it is built first")
        bring_up_to_date(reader, sae, progress)
    return Lookup(entry, sae, reader, Index(sae.index_path))


def top(lookup: Lookup, feature: int, k: int = 20) -> list[Example]:
    """The `k` strongest activations of `feature` in different contexts.

    Samples of one prompt share its tokens, whose activations are then equal: such copies are shown once and counted.
    """
    _check_count(k)
    contexts = lookup.index.contexts(feature, k)
    if contexts is None:
        return top_by_postings(lookup, feature, k)
    with _Shards(lookup.reader) as shards:
        return [replace(shards.example(one.posting), copies=one.copies) for one in contexts]


def top_by_postings(lookup: Lookup, feature: int, k: int) -> list[Example]:
    """The same from the postings and the texts they lie in, for more contexts than the index lists.

    Copies are counted as far as the postings have to be read.
    """
    examples: dict[tuple[int, ...], Example] = {}
    with _Shards(lookup.reader) as shards:
        for posting in lookup.index.postings(feature):
            context = shards.context(posting)
            if context in examples:
                examples[context] = replace(examples[context], copies=examples[context].copies + 1)
            elif len(examples) == k:
                break
            else:
                examples[context] = shards.example(posting)
    return list(examples.values())


class _Shards:
    """The shards of a set, each opened once, when it is needed (a context manager)."""

    def __init__(self, reader: SetReader):
        self.reader, self.stack = reader, ExitStack()
        self.opened: dict[int, Shard] = {}

    def __enter__(self) -> _Shards:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stack.close()

    def shard(self, number: int) -> Shard:
        """Shard `number`."""
        if number not in self.opened:
            self.opened[number] = self.stack.enter_context(self.reader.shard(number))
        return self.opened[number]

    def context(self, posting: Posting) -> tuple[int, ...]:
        """The input tokens of the posting's document up to its own."""
        shard = self.shard(posting.shard)
        span = shard.span(posting.row)
        return tuple(shard.document(span.document).input_ids[: span.position + 1].tolist())

    def example(self, posting: Posting) -> Example:
        """The posting with its text."""
        shard = self.shard(posting.shard)
        span = shard.span(posting.row)
        text, prompt, label = (shard.text(name, span.document) for name in ("text", "prompt", "label"))
        first = int(shard.attrs["first_document"])
        return Example(posting.value, posting.shard, posting.row, first + span.document, span, text, label, prompt)


def _check_count(k: int) -> None:
    if k < 1:
        raise UserError(f"--k cannot be {k}", "1 or more")


def show(lookup: Lookup, feature: int, k: int = 5) -> FeatureReport:
    """One feature: its figures, the tokens it fires on most, its activation by label, and its strongest examples."""
    return FeatureReport(
        lookup.index.stats(feature),
        tuple(lookup.index.tokens(feature)),
        tuple(lookup.index.label_means(feature)),
        tuple(top(lookup, feature, k)),
    )


def feature_label(lookup: Lookup, feature: int) -> str:
    """The label on whose tokens the feature is most active, or "" for a set with fewer than two labels."""
    means = lookup.index.label_means(feature)
    return means[0][0] if len(means) > 1 and means[0][1] > 0 else ""


def ranked(lookup: Lookup, sort: str = "density", k: int = 20) -> list[FeatureStats]:
    """The first `k` features by `sort`."""
    _check_count(k)
    if sort not in SORTS:
        raise UserError(f"features cannot be sorted by '{sort}'", "by label, " + ", ".join(SORTS))
    return lookup.index.ranked(sort, k)


def by_label(lookup: Lookup, k: int = 20) -> list[LabelScore]:
    """The `k` features that best tell one label of the set from the others."""
    _check_count(k)
    scores = lookup.index.label_scores(k)
    if not scores:
        raise UserError(
            f"the documents of {lookup.entry.name} have fewer than two labels", "sort by density, max or mean"
        )
    return scores
