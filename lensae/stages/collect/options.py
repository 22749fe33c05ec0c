"""The options of a collection pass, and its report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lensae.core.errors import UserError
from lensae.core.recipe import Sampling
from lensae.core.records import ReadOptions
from lensae.store.schema import COMPRESSIONS, DTYPES

COMPUTE_DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class CollectOptions:
    """What to collect; `hooks` empty means the middle block's residual stream."""

    model: str | None = None
    hooks: tuple[str, ...] = ()
    corpus: str = "themes"
    generate: bool = True
    chat: bool = False
    text_column: str = "text"
    label_column: str = "label"
    lines: bool | None = None
    context: int = 512
    join: bool = False
    max_tokens: int | None = None
    max_new_tokens: int = 96
    samples_per_prompt: int = 1
    batch_size: int | None = None
    temperature: float = 0.9
    top_k: int = 50
    seed: int = 0
    dtype: str = "float16"
    compute_dtype: str = "float32"
    compress: str | None = None
    shard_rows: int | None = None
    skip_bad: bool = False
    steer: tuple[str, ...] = ()
    sae: str | None = None
    name: str | None = None

    @property
    def reading(self) -> ReadOptions:
        """How the corpus is read."""
        return ReadOptions(self.text_column, self.label_column, self.lines)

    @property
    def sampling(self) -> Sampling:
        """How continuations are drawn."""
        return Sampling(self.max_new_tokens, self.temperature, self.top_k, self.seed)

    def __post_init__(self) -> None:
        choices = {"dtype": DTYPES, "compute_dtype": COMPUTE_DTYPES, "compress": (None, *COMPRESSIONS)}
        for field, known in choices.items():
            if getattr(self, field) not in known:
                raise UserError(
                    f"--{field.replace('_', '-')} cannot be '{getattr(self, field)}'",
                    "one of " + ", ".join(name for name in known if name),
                )
        if self.join and self.generate:
            raise UserError("--join is for texts that are only read", "give --no-generate as well")
        for field in ("samples_per_prompt", "batch_size", "max_tokens", "shard_rows"):
            if getattr(self, field) is not None and getattr(self, field) < 1:
                raise UserError(f"--{field.replace('_', '-')} cannot be {getattr(self, field)}", "1 or more")
        if self.generate and self.max_new_tokens < 1:
            raise UserError(f"--max-new-tokens cannot be {self.max_new_tokens}", "1 or more, or --no-generate")
        _checked = self.sampling
        if self.context < 2:
            raise UserError(f"--context cannot be {self.context}", "2 or more")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"--seed cannot be {self.seed}", "0 or more")


@dataclass(frozen=True, kw_only=True)
class CollectReport:
    """The outcome of one pass; `rows` counts those of one hook. `seconds` is the time of the run that finished it,
    which collected `rows_in_seconds` of them; `peak_memory` is the largest memory of this process, in bytes."""

    model: str
    hooks: tuple[str, ...]
    paths: tuple[Path, ...]
    documents: int
    rows: int
    prompt_rows: int
    generated_rows: int
    seconds: float
    rows_in_seconds: int
    dropped: int
    bytes: int
    peak_memory: int
    already_complete: bool

    @property
    def tokens_per_second(self) -> float:
        """Tokens of one hook collected per second."""
        return self.rows_in_seconds / self.seconds if self.seconds else 0.0

    @property
    def bytes_per_token(self) -> float:
        """Bytes on disk for one token of one hook, its position in the text included."""
        return self.bytes / (self.rows * len(self.hooks)) if self.rows else 0.0
