"""What a steering run came to."""

from __future__ import annotations

from dataclasses import dataclass, field

from lensae.stages.steer.options import SteerOptions

READABLE = 3.0  # times the unsteered texts' perplexity, up to which a text counts as readable


@dataclass(frozen=True)
class Condition:
    """One condition over all prompts and samples.

    readback    the feature's mean activation on the generated tokens, read after the edit
    rereading   the feature's mean activation when the unsteered model reads the finished text
    kl          mean KL(unsteered || this) of the next token along the unsteered texts, in nats
    perplexity  of this condition's texts under the unsteered model
    label_probability   mean P(label | text) by words alone, for the feature's own label (nan without labels)
    """

    name: str
    scale: float
    value: float
    texts: tuple[str, ...] = field(repr=False)
    readback: float
    rereading: float
    kl: float
    perplexity: float
    label_probability: float


@dataclass(frozen=True)
class SteerReport:
    """The conditions in order: unsteered, steered at each scale, then the controls at the scale that is shown."""

    set_name: str
    sae_name: str
    hook: str
    options: SteerOptions
    maximum: float
    residual_norm: float
    label: str
    control_feature: int
    prompts: tuple[str, ...]
    baseline: Condition
    steered: tuple[Condition, ...]
    controls: tuple[Condition, ...]
    best: Condition | None

    @property
    def shown(self) -> Condition:
        """The run whose texts are worth showing: the best, or the strongest when none is any good."""
        return self.best or self.steered[-1]
