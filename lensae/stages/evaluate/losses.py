"""What it costs the model when the stream at a hook is replaced.

Shapes: G groups of documents that share a prompt, T targets of a document, S the model's variants, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from lensae.core.memory import keep_freed_memory
from lensae.stages.evaluate.reconstruction import group_numbers
from lensae.stages.shared.progress import Progress
from lensae.store.reader import Selection, SetReader

if TYPE_CHECKING:
    import torch

    from lensae.model.language_model import Edit, LanguageModel
    from lensae.model.score import TokenLosses

    Replace = Callable[[torch.Tensor], torch.Tensor]

SPLICE_TOKENS = 32  # that the stream is replaced by itself at
# Columns of Losses.of.
TOKENS, CLEAN, ZERO, KL_ZERO, CE, KL = range(6)


@dataclass(frozen=True)
class Losses:
    """Sums over the targets of each group: `counts` their number, `ce[name]` and `kl[name]` in nats, by replacement.

    `ce["clean"]` is the model as it is and "zero" has the stream set to zeros. `splice_difference` is the largest
    change of a log-probability when the stream is replaced by itself, on the first `splice_tokens` tokens.
    """

    counts: np.ndarray = field(repr=False)
    ce: dict[str, np.ndarray] = field(repr=False)
    kl: dict[str, np.ndarray] = field(repr=False)
    splice_tokens: int
    splice_difference: float

    def of(self, name: str) -> np.ndarray:
        """What belongs to one replacement (G, 6): targets, CE clean and zero, KL zero, its CE, its KL."""
        kl = self.kl.get(name, np.zeros_like(self.counts))
        parts = (self.counts, self.ce["clean"], self.ce["zero"], self.kl["zero"], self.ce[name], kl)
        return np.stack(parts, axis=-1)


def ce_recovered(sums: np.ndarray) -> np.ndarray:
    """(zero - spliced) / (zero - clean) from sums (..., 6)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return (sums[..., ZERO] - sums[..., CE]) / (sums[..., ZERO] - sums[..., CLEAN])


def kl_recovered(sums: np.ndarray) -> np.ndarray:
    """1 - KL(clean || spliced) / KL(clean || zero) from sums (..., 6)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1 - sums[..., KL] / sums[..., KL_ZERO]


def measure(
    model: LanguageModel,
    reader: SetReader,
    chosen: Selection,
    replacements: Mapping[str, Replace],
    progress: Progress,
    target_hook: str | None = None,
) -> Losses:
    """Run the chosen documents through the model as it is, with zeros, and with each replacement (x -> x_hat) of the
    stream at the set's hook; with a `target_hook` of the stream there, by a function of that at the set's hook.

    Special tokens are never replaced, and are not counted as targets.
    """
    from lensae.model.variants import variant_losses

    keep_freed_memory()
    documents = list(reader.documents(chosen))
    sequences, group = [one.input_ids.tolist() for one in documents], group_numbers(documents)
    itself, edits = _edits(reader.entry.manifest.hook, target_hook, replacements)
    sums = _Sums(int(group.max()) + 1, edits, np.array(sorted(model.text.special_ids)))
    progress.start("running held-out documents through the model", sum(map(len, sequences)), "tokens")
    checked = sequences[0][:SPLICE_TOKENS]
    difference = _splice_difference(model, checked, itself)
    for number, losses in variant_losses(model, sequences, edits, progress.advance):
        sums.add(group[number], np.array(sequences[number][1:]), losses)
    return Losses(sums.counts, sums.ce, sums.kl, len(checked), difference)


def _splice_difference(model: LanguageModel, ids: list[int], itself: Edit) -> float:
    """The largest change of a log-probability when the stream is replaced by itself."""
    from lensae.model.score import next_token_logprobs

    [clean_TV], [same_TV] = next_token_logprobs(model, [ids]), next_token_logprobs(model, [ids], [itself])
    return float((clean_TV - same_TV).abs().max())


def _edits(
    hook: str, target_hook: str | None, replacements: Mapping[str, Replace]
) -> tuple[Edit, dict[str, Sequence[Edit]]]:
    """What replaces the stream by itself; and by name what replaces it by zeros and by each of the functions."""
    import torch

    from lensae.steering.edits import Replacement, predicted

    replaced = target_hook or hook
    edits: dict[str, Sequence[Edit]] = {"zero": [Replacement(replaced, torch.zeros_like)]}
    for name, function in replacements.items():
        edits[name] = predicted(hook, replaced, function) if target_hook else [Replacement(replaced, function)]
    return Replacement(replaced, lambda x: x), edits


class _Sums:
    """Adds up the losses of one document after the other; `special` are the tokens that do not count as targets."""

    def __init__(self, groups: int, names: Iterable[str], special: np.ndarray):
        self.special = special
        self.counts = np.zeros(groups)
        self.ce = {name: np.zeros(groups) for name in ("clean", *names)}
        self.kl = {name: np.zeros(groups) for name in names}

    def add(self, group: int, target_T: np.ndarray, losses: TokenLosses) -> None:
        """Take in one document's losses, which are of the `names` in order."""
        counted_T = ~np.isin(target_T, self.special)
        self.counts[group] += counted_T.sum()
        for sums, losses_ST in ((self.ce, losses.ce_ST), (self.kl, losses.kl_ST)):
            for name, losses_T in zip(sums, losses_ST, strict=True):
                sums[name][group] += losses_T[counted_T].sum()
