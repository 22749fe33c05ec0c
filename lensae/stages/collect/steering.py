"""Collecting from a model while features of an SAE are steered: what is stored is then the edited stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lensae.core import registry
from lensae.core.durable import read_json
from lensae.core.errors import UserError
from lensae.core.paths import store_root
from lensae.stages.features import Lookup, open_lookup
from lensae.stages.index import check_match
from lensae.stages.shared.progress import Progress

if TYPE_CHECKING:
    from lensae.model.source import ModelSource


FORM = "FEATURE[:SCALE[:OPERATION]], for example 447:2 or 447:1:add"


@dataclass(frozen=True)
class SteeredFeature:
    """One feature steered at `scale` times its maximum over the set (`value`, in the units of the SAE's features)."""

    feature: int
    scale: float
    operation: str
    value: float


@dataclass(frozen=True)
class Steering:
    """The features that a pass steers, and the folder of their SAE (relative to the store if it lies there)."""

    hook: str
    sae: str
    sae_sha256: str
    features: tuple[SteeredFeature, ...]

    @property
    def suffix(self) -> str:
        """The end of the name of a set of the edited stream."""
        return "".join(f"-steered-{one.feature}-{one.operation}-{one.scale:g}" for one in self.features)

    @property
    def arguments(self) -> tuple[str, ...]:
        """The values of `--steer` on the command line."""
        return tuple(f"{one.feature}:{one.scale!r}:{one.operation}" for one in self.features)

    def edits(self, device: str) -> list:
        """The edits for the model's hooks."""
        from lensae.sae.formats.saelens import load
        from lensae.steering.edits import FeatureEdit

        sae = load(store_root() / self.sae).to(device)
        return [FeatureEdit(self.hook, sae, one.feature, one.value, one.operation) for one in self.features]


def find_steering(
    arguments: tuple[str, ...], sae_name: str | None, source: ModelSource, progress: Progress | None = None
) -> Steering | None:
    """The steering that the values of `--steer` mean (None without any) for the model `source`, by the named or the
    current SAE.

    Raises UserError for a form that cannot be read, a feature that never fires, or an SAE of another model.
    """
    if not arguments:
        if sae_name:
            raise UserError("--sae alone does nothing here", f"give --steer as well: {FORM}")
        return None
    lookup = open_lookup(None, sae_name, progress)
    if lookup.entry.manifest.model.weights_sha256 != source.weights_digest():
        raise UserError(f"SAE '{lookup.sae.name}' was trained on {lookup.entry.name}", "give that model, or --sae")
    from lensae.sae.formats.saelens import weights_digest

    check_match(lookup.entry, lookup.sae, read_json(lookup.sae.path / "cfg.json"))
    features = tuple(_steered_feature(text, lookup) for text in arguments)
    path = lookup.sae.path
    name = path.relative_to(store_root()) if path.is_relative_to(store_root()) else path.resolve()
    return Steering(lookup.entry.manifest.hook, str(name), weights_digest(path), features)


def as_recorded(record: dict | None, source: ModelSource) -> Steering | None:
    """The recorded steering of a pass; raises UserError when the SAE or the feature's maximum has changed since."""
    if record is None:
        return None
    recorded = Steering(**{**record, "features": tuple(SteeredFeature(**one) for one in record["features"])})
    if find_steering(recorded.arguments, str(store_root() / recorded.sae), source) != recorded:
        raise UserError(f"the SAE {recorded.sae} is not the one this was collected with", "bring it back")
    return recorded


def _steered_feature(text: str, lookup: Lookup) -> SteeredFeature:
    feature, scale, operation = (*text.split(":"), "", "")[:3]
    try:
        number, factor = int(feature), float(scale or 1)
    except ValueError:
        raise UserError(f"--steer cannot be '{text}'", FORM) from None
    operation = operation or "clamp"
    if text.count(":") > 2 or not abs(factor) < float("inf"):
        raise UserError(f"--steer cannot be '{text}'", FORM)
    registry.check("steering.operations", operation)
    stats = lookup.index.stats(number)
    if not stats.count:
        raise UserError(f"feature {number} never fires on {lookup.entry.name}", "choose from: features list")
    return SteeredFeature(number, factor, operation, factor * stats.max)
