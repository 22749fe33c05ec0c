"""What it costs the model when the stream at a hook is replaced.

Shapes: G groups of documents that share a prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from lensae.stages.evaluate.reconstruction import group_numbers
from lensae.stages.shared.progress import Progress
from lensae.store.reader import Selection, SetReader

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
    model,
    reader: SetReader,
    chosen: Selection,
    replacements: dict[str, Callable],
    progress: Progress,
    target_hook: str | None = None,
) -> Losses:
    """Run the chosen documents through the model as it is, with zeros, and with each replacement (x -> x_hat) of the
    stream at the set's hook; with a `target_hook` of the stream there, by a function of that at the set's hook.

    Special tokens are never replaced, and are not counted as targets.
    """
    import torch

    from lensae.model.score import next_token_logprobs, scoring_batches

    documents = list(reader.documents(chosen))
    sequences, group = [one.input_ids.tolist() for one in documents], group_numbers(documents)
    itself, edits = _edits(reader.entry.manifest.hook, target_hook, replacements)
    sums = _Sums(int(group.max()) + 1, edits, torch.tensor(sorted(model.text.special_ids)))
    checked, difference = 0, 0.0
    progress.start("running held-out documents through the model", sum(map(len, sequences)), "tokens")
    for batch in scoring_batches(model, sequences):
        ids = [sequences[i] for i in batch]
        clean = next_token_logprobs(model, ids)
        if not checked:
            same = next_token_logprobs(model, ids, [itself])
            checked = sum(map(len, ids))
            difference = max(float((a - b).abs().max()) for a, b in zip(clean, same, strict=True))
        for b, i in enumerate(batch):
            sums.add("clean", group[i], sequences[i], clean[b])
        for name, some in edits.items():
            changed = next_token_logprobs(model, ids, some)
            for b, i in enumerate(batch):
                sums.add(name, group[i], sequences[i], changed[b], clean[b])
        progress.advance(sum(map(len, ids)))
    return Losses(sums.counts, sums.ce, sums.kl, checked, difference)


def _edits(hook: str, target_hook: str | None, replacements: dict[str, Callable]) -> tuple:
    """What replaces the stream by itself; and by name what replaces it by zeros and by each of the functions."""
    import torch

    from lensae.steering.edits import Replacement, predicted

    place = target_hook or hook
    edits = {"zero": [Replacement(place, torch.zeros_like)]}
    for name, function in replacements.items():
        edits[name] = predicted(hook, place, function) if target_hook else [Replacement(place, function)]
    return Replacement(place, lambda x: x), edits


class _Sums:
    """Adds up the losses of one sequence after the other."""

    def __init__(self, groups: int, names, special):
        self.special = special
        self.counts = np.zeros(groups)
        self.ce = {name: np.zeros(groups) for name in ("clean", *names)}
        self.kl = {name: np.zeros(groups) for name in names}

    def add(self, name: str, group: int, sequence: list[int], logp_TV, clean_TV=None) -> None:
        """Take in one sequence's log-probabilities; those of the clean run come first and without `clean_TV`."""
        import torch

        from lensae.steering import measure

        target = torch.tensor(sequence[1:], device=logp_TV.device)
        counted = ~torch.isin(target, self.special.to(target.device))
        ce = measure.cross_entropy(logp_TV[:-1], target)[counted]
        self.ce[name][group] += ce.cpu().double().sum().item()
        if clean_TV is None:
            self.counts[group] += len(ce)
        else:
            self.kl[name][group] += measure.kl(clean_TV[:-1], logp_TV[:-1])[counted].cpu().double().sum().item()
