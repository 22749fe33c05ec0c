"""steer: a feature changed while the model writes, beside the unsteered text and two controls, and measured.

Shapes: D d_model, F features, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lensae.core.errors import UserError
from lensae.index.query import Index
from lensae.stages.features import feature_label, open_lookup
from lensae.stages.index import check_match
from lensae.stages.shared.models import load_model_of
from lensae.stages.shared.progress import Progress, Silent
from lensae.stages.steer.conditions import Bench
from lensae.stages.steer.options import SteerOptions
from lensae.stages.steer.report import READABLE, Condition, SteerReport


def best_of(baseline: Condition, steered: Sequence[Condition], labelled: bool) -> Condition | None:
    """The run that moves furthest toward the feature's label (or, without labels, whose text makes the feature fire
    most when read again) among those whose perplexity stays within READABLE times the unsteered texts'."""

    def gain(run: Condition) -> float:
        if labelled:
            return run.label_probability - baseline.label_probability
        return run.rereading - baseline.rereading

    moved = [run for run in steered if run.perplexity <= READABLE * baseline.perplexity and gain(run) > 0]
    return max(moved, key=gain, default=None)


def steer(options: SteerOptions, progress: Progress | None = None) -> SteerReport:
    """Generate and measure every condition from the same random streams.

    Raises UserError for a feature that does not exist or never fires.
    """
    progress = progress or Silent()
    lookup = open_lookup(options.set_name, options.sae_name, progress)
    stats = lookup.index.stats(options.feature)
    if not stats.count:
        raise UserError(f"feature {options.feature} never fires on {lookup.entry.name}", "choose from: features list")
    from lensae.sae.formats.saelens import load

    sae = load(lookup.sae.path)
    check_match(lookup.entry, lookup.sae, sae.cfg)
    if "d_out" in sae.cfg:  # its features write into another stream than the one they are read from
        raise UserError(f"'{lookup.sae.name}' is a transcoder", "steer works on SAEs: choose one with --sae")
    progress.say(f"loading {lookup.entry.manifest.model.name}")
    model = load_model_of(lookup.entry, [lookup.entry.manifest.hook])
    label = feature_label(lookup, options.feature)
    bench = Bench(options, lookup, model, sae.to(model.device), label, stats.max)
    scales = options.scales if options.takes_value else (1.0,)
    progress.start("generating and measuring", len(scales) + 3, "runs")
    baseline = bench.run("unsteered", 0.0, 0.0, None)
    progress.advance(1)
    steered = []
    for scale in scales:
        value = scale * stats.max
        steered.append(bench.run("steered", scale, value, bench.feature_edit(options.feature, value)))
        progress.advance(1)
    other = like_density(lookup.index, options.feature, options.seed)
    best = best_of(baseline, steered, bool(label))
    controls = bench.controls(other, (best or steered[-1]).scale)
    progress.advance(2)
    return SteerReport(
        lookup.entry.name,
        lookup.sae.name,
        lookup.entry.manifest.hook,
        options,
        stats.max,
        bench.residual_norm,
        label,
        other,
        tuple(p for p in options.prompts for _ in range(options.samples)),
        baseline,
        tuple(steered),
        tuple(controls),
        best,
    )


def like_density(index: Index, feature: int, seed: int) -> int:
    """A feature drawn from the twenty whose density is nearest to that of `feature` (itself left out)."""
    table = index.table()
    alive = np.flatnonzero((table["count"] > 0) & (np.arange(len(table["count"])) != feature))
    if not len(alive):
        return feature
    distance = np.abs(np.log(table["density"][alive] / table["density"][feature]))
    nearest = alive[np.argsort(distance, kind="stable")[:20]]
    return int(np.random.default_rng([seed, feature]).choice(nearest))
