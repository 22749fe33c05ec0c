"""Losses of a model and of variants of it that differ in what a hook holds.

Where all variants differ at one hook of the residual stream, documents stand side by side in one row (1, N, D) up to
that hook, whose stream is then replaced by that of all variants, one below the other (1 + S, N, D): what lies before
the hook is computed once, what comes after it in one go. A model that gives something else that way, and variants that
differ elsewhere, are run in the plain way, one variant after the other.

Shapes: S variants, N tokens of all documents of a pass, L tokens of one, T its targets (L - 1), D d_model,
V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from lensae.model.attention import side_by_side
from lensae.model.generate import origin_of
from lensae.model.hooked import RESIDUAL
from lensae.model.language_model import Edit, LanguageModel, StopForward, Taps
from lensae.model.precision import fast_matmul
from lensae.model.read import AGREE, AGREE_SHORT, ready
from lensae.model.score import Sequences, TokenLosses, Variants, plain_losses
from lensae.model.unembedding import HiddenStates, Unembedding, next_token_losses, unembedding_of

# Tokens, counted once for each variant, of a pass through the blocks; tokens whose losses are computed together (more
# of them share the logits of a stream that is the same in all documents).
PASS_TOKENS, LOSS_TOKENS = 4096, 4096
TRIED_TOKENS = (16, 9)  # of the documents that both ways are tried on
ROUNDING = 1e-5  # how far, relatively, the streams of one token may be apart that are the same but for rounding


def variant_losses(
    model: LanguageModel, sequences: Sequences, variants: Variants, advance: Callable[[int], None]
) -> Iterator[tuple[int, TokenLosses]]:
    """The number and the losses of each of the sequences, in an order of its own.

    Each variant is the edits that make it. `advance` is called with the number of tokens whenever some have gone
    through the model.
    """
    run = OnePass.of(model, variants) if sequences else None
    losses = run.losses if run and run.agrees(sequences) else partial(plain_losses, model, variants)
    yield from losses(sequences, advance)


@dataclass(frozen=True)
class Reference:
    """A variant of the longest document: its stream at the hook (L, D), and the final hidden states (L, D) that the
    model makes of it. They are those of every document whose stream begins in the same way (one set to zero)."""

    stream_LD: torch.Tensor
    hidden_LD: torch.Tensor


class Expansion:
    """The edit that puts the streams of all variants below the clean one, but for variants whose streams in these
    documents are those of their reference (`same`)."""

    def __init__(self, hook: str, edits: Sequence[Edit], lengths: Sequence[int], references: Sequence[Reference]):
        self.hook, self.edits, self.lengths, self.references = hook, edits, lengths, references
        self.same: list[int] = []
        self.x_SND: torch.Tensor | None = None

    def apply(self, x_1ND: torch.Tensor, origin_1N: torch.Tensor) -> torch.Tensor:
        """The streams of the clean model and of the variants."""
        streams = [x_1ND]
        for number, edit in enumerate(self.edits):
            changed_1ND = edit.apply(x_1ND, origin_1N)
            if self.references and self._is_same(changed_1ND[0], self.references[number].stream_LD):
                self.same.append(number)
            else:
                streams.append(changed_1ND)
        self.x_SND = torch.cat(streams)
        return self.x_SND

    def _is_same(self, x_ND: torch.Tensor, stream_LD: torch.Tensor) -> bool:
        return all(_equal(x_LD, stream_LD[: len(x_LD)]) for x_LD in x_ND.split(list(self.lengths)))


def _equal(x_LD: torch.Tensor, y_LD: torch.Tensor) -> bool:
    """Whether all rows are the same but for rounding."""
    return bool(((x_LD - y_LD).norm(dim=-1) <= ROUNDING * y_LD.norm(dim=-1)).all())


@dataclass(frozen=True)
class OnePass:
    """All variants in one pass: one edit each, all at `hook`."""

    model: LanguageModel
    unembedding: Unembedding
    hook: str
    variants: Variants

    @classmethod
    def of(cls, model: LanguageModel, variants: Variants) -> OnePass | None:
        """None where the variants or the model do not allow it."""
        hooks = {edit.hook for edits in variants.values() for edit in edits}
        if len(hooks) != 1 or any(len(edits) != 1 for edits in variants.values()):
            return None
        [hook] = hooks
        ready(model)
        unembedding = unembedding_of(model) if model.side_by_side and RESIDUAL.fullmatch(hook) else None
        return None if unembedding is None else cls(model, unembedding, hook, variants)

    def agrees(self, sequences: Sequences) -> bool:
        """Whether the plain way gives the same, tried on the first tokens of some sequences."""
        tried = [list(ids[:length]) for ids, length in zip(sequences, TRIED_TOKENS, strict=False)]
        most = AGREE if self.model.network.dtype == torch.float32 else AGREE_SHORT
        ours = dict(self.losses(tried, lambda _tokens: None, pass_tokens=1))
        for number, plain in plain_losses(self.model, self.variants, tried, lambda _tokens: None):
            for a_ST, b_ST in ((ours[number].ce_ST, plain.ce_ST), (ours[number].kl_ST, plain.kl_ST)):
                if not np.linalg.norm(a_ST - b_ST) <= most * (np.linalg.norm(b_ST) + b_ST.size**0.5):
                    return False
        return True

    def losses(
        self, sequences: Sequences, advance: Callable[[int], None], pass_tokens: int = PASS_TOKENS
    ) -> Iterator[tuple[int, TokenLosses]]:
        """The number and the losses of each sequence, the longest first."""
        order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
        references: list[Reference] = []
        waiting: list[_Pass] = []
        for numbers in self._passes([len(sequences[i]) for i in order], pass_tokens):
            one = self._run([order[n] for n in numbers], sequences, references)
            references = references or one.references()
            waiting.append(one)
            advance(sum(one.lengths))
            if sum(sum(w.lengths) for w in waiting) >= LOSS_TOKENS:
                yield from self._finish(waiting, sequences, references)
                waiting = []
        yield from self._finish(waiting, sequences, references)

    def _passes(self, lengths: Sequence[int], pass_tokens: int) -> Iterator[list[int]]:
        """Numbers of documents for each pass; the first has one document alone, the reference."""
        most = max(1, pass_tokens // (1 + len(self.variants)))
        yield [0]
        batch: list[int] = []
        for number in range(1, len(lengths)):
            if batch and sum(lengths[n] for n in batch) + lengths[number] > most:
                yield batch
                batch = []
            batch.append(number)
        if batch:
            yield batch

    @torch.inference_mode()
    def _run(self, numbers: list[int], sequences: Sequences, references: list[Reference]) -> _Pass:
        """Documents through the model, up to their final hidden states."""
        model, lengths = self.model, [len(sequences[i]) for i in numbers]
        ids_1N = torch.tensor([[token for i in numbers for token in sequences[i]]], device=model.device)
        position_1N = torch.cat([torch.arange(n, device=model.device) for n in lengths])[None]
        expansion = Expansion(self.hook, [edit for [edit] in self.variants.values()], lengths, references)
        with fast_matmul(), Taps(model, edits=[expansion]) as taps, side_by_side(lengths):
            taps.begin(origin_of(model, ids_1N, torch.ones_like(ids_1N)))
            hidden_SND = _final_hidden(model, input_ids=ids_1N, position_ids=position_1N)
        stream_SND = None if references else expansion.x_SND
        return _Pass(numbers, lengths, position_1N[0], expansion.same, stream_SND, hidden_SND)

    @torch.inference_mode()
    def _finish(
        self, waiting: list[_Pass], sequences: Sequences, references: list[Reference]
    ) -> list[tuple[int, TokenLosses]]:
        """The losses of documents that have been through the model."""
        if not waiting:
            return []
        last_N = torch.cat([one.last_N for one in waiting])
        kept_N = (~last_N).nonzero()[:, 0]  # the last token of a document has no target
        clean_ND = torch.cat([one.hidden_SND[0] for one in waiting])[kept_N]
        states = [self._states(number, waiting, references[number], kept_N) for number in range(len(self.variants))]
        numbers = [i for one in waiting for i in one.numbers]
        target_N = torch.tensor([token for i in numbers for token in sequences[i][1:]], device=self.model.device)
        with fast_matmul():
            ce_SN, kl_SN = next_token_losses(self.unembedding, clean_ND, states, target_N)
        bounds = np.cumsum([len(sequences[i]) - 1 for i in numbers])[:-1]
        parts = (np.split(x_SN.cpu().numpy(), bounds, axis=1) for x_SN in (ce_SN, kl_SN))
        return [(i, TokenLosses(ce_ST, kl_ST)) for i, ce_ST, kl_ST in zip(numbers, *parts, strict=True)]

    def _states(self, number: int, waiting: list[_Pass], reference: Reference, kept_N: torch.Tensor) -> HiddenStates:
        """The final hidden states of one variant."""
        if all(number in one.same for one in waiting):
            longest = max(max(one.lengths) for one in waiting)
            position_N = torch.cat([one.position_N for one in waiting])[kept_N]
            return HiddenStates(reference.hidden_LD[:longest], position_N)
        rows = [one.hidden_of(number, reference) for one in waiting]
        return HiddenStates(torch.cat(rows)[kept_N])


@dataclass(frozen=True)
class _Pass:
    """Documents that have been through the model: their numbers and lengths, the position of each token, the variants
    that were left out because their streams are those of their references, and of the others, the clean model first,
    the streams at the hook (of the first pass alone) and the final hidden states."""

    numbers: list[int]
    lengths: list[int]
    position_N: torch.Tensor
    same: list[int]
    stream_SND: torch.Tensor | None
    hidden_SND: torch.Tensor

    @property
    def last_N(self) -> torch.Tensor:
        """Which tokens are the last of their documents."""
        following_N = torch.cat([self.position_N[1:], self.position_N.new_zeros(1)])
        return following_N == 0

    def references(self) -> list[Reference]:
        """Those that the first pass, of one document, gives."""
        assert self.stream_SND is not None
        return [Reference(x, hidden) for x, hidden in zip(self.stream_SND[1:], self.hidden_SND[1:], strict=True)]

    def hidden_of(self, number: int, reference: Reference) -> torch.Tensor:
        """The final hidden states (N, D) of one variant."""
        if number in self.same:
            return reference.hidden_LD[self.position_N]
        return self.hidden_SND[1 + number - sum(same < number for same in self.same)]


def _final_hidden(model: LanguageModel, **inputs: torch.Tensor) -> torch.Tensor:
    """What reaches the unembedding, which is not computed."""
    reached: list[torch.Tensor] = []

    def stop(_layer: torch.nn.Module, arguments: tuple) -> None:
        reached.append(arguments[0])
        raise StopForward

    handle = model.network.get_output_embeddings().register_forward_pre_hook(stop)
    try:
        with contextlib.suppress(StopForward):
            model.run(**inputs, use_cache=False)
    finally:
        handle.remove()
    return reached[0]
