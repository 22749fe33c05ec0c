"""Collecting from a model while features of an SAE are held: what is stored is then the edited stream."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from lensae.core import registry
from lensae.core.durable import read_json
from lensae.core.errors import UserError
from lensae.core.paths import store_root
from lensae.stages.features import Lookup, open_lookup
from lensae.stages.index import check_match

FORM = "FEATURE[:SCALE[:OPERATION]], for example 447:2 or 447:1:add"


@dataclass(frozen=True)
class SteeredFeature:
    """One feature held at `scale` times its maximum over the set (`value`, in the units of the SAE's features)."""

    feature: int
    scale: float
    operation: str
    value: float


@dataclass(frozen=True)
class Steering:
    """The features that a pass holds, and the folder of their SAE (below the store when it lies there)."""

    hook: str
    sae: str
    sae_sha256: str
    held: tuple[SteeredFeature, ...]

    @property
    def suffix(self) -> str:
        """What tells a set of the edited stream from one of the plain stream, by name."""
        return "".join(f"-steered-{h.feature}-{h.operation}-{h.scale:g}" for h in self.held)

    @property
    def asked(self) -> tuple[str, ...]:
        """The same as it is given on the command line."""
        return tuple(f"{h.feature}:{h.scale!r}:{h.operation}" for h in self.held)

    def edits(self, device: str) -> list:
        """The edits that the model's hooks run."""
        from lensae.sae.formats.saelens import load
        from lensae.steering.edits import FeatureEdit

        sae = load(store_root() / self.sae).to(device)
        return [FeatureEdit(self.hook, sae, h.feature, h.value, h.operation) for h in self.held]


def find_steering(asked: tuple[str, ...], sae_name: str | None, source) -> Steering | None:
    """What `--steer` means (None without it) for the model `source`, by the SAE of that name or the current one.

    Raises UserError for a form that cannot be read, a feature that never fires, or an SAE of another model.
    """
    if not asked:
        if sae_name:
            raise UserError("--sae alone does nothing here", f"give --steer as well: {FORM}")
        return None
    lookup = open_lookup(None, sae_name)
    if lookup.entry.manifest.model.weights_sha256 != source.weights_digest():
        raise UserError(f"SAE '{lookup.sae.name}' was trained on {lookup.entry.name}", "give that model, or --sae")
    from lensae.sae.formats.saelens import WEIGHTS

    check_match(lookup.entry, lookup.sae, read_json(lookup.sae.path / "cfg.json"))
    digest = hashlib.sha256((lookup.sae.path / WEIGHTS).read_bytes()).hexdigest()
    held = tuple(_held(text, lookup) for text in asked)
    path = lookup.sae.path
    place = path.relative_to(store_root()) if path.is_relative_to(store_root()) else path.resolve()
    return Steering(lookup.entry.manifest.hook, str(place), digest, held)


def as_recorded(record: dict | None, source) -> Steering | None:
    """The steering of a pass again; raises UserError when the SAE or the feature's maximum is another one now."""
    if record is None:
        return None
    recorded = Steering(**{**record, "held": tuple(SteeredFeature(**held) for held in record["held"])})
    if find_steering(recorded.asked, str(store_root() / recorded.sae), source) != recorded:
        raise UserError(f"the SAE {recorded.sae} is not the one this was collected with", "bring it back")
    return recorded


def _held(text: str, lookup: Lookup) -> SteeredFeature:
    feature, scale, operation = (*text.split(":"), "", "")[:3]
    try:
        number, times = int(feature), float(scale or 1)
    except ValueError:
        raise UserError(f"--steer cannot be '{text}'", FORM) from None
    operation = operation or "clamp"
    if text.count(":") > 2 or not abs(times) < float("inf"):
        raise UserError(f"--steer cannot be '{text}'", FORM)
    registry.check("steering.operations", operation)
    stats = lookup.index.stats(number)
    if not stats.count:
        raise UserError(f"feature {number} never fires on {lookup.entry.name}", "choose from: features list")
    return SteeredFeature(number, times, operation, times * stats.max)
