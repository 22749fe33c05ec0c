"""evaluate: an SAE or a transcoder on held-out documents, reconstruction first, then what it costs the model.

Shapes: F features, G groups of documents that share a prompt, S sums kept of each.
"""

from __future__ import annotations

import os
import time

import numpy as np

from lensae.core.durable import write_json
from lensae.core.errors import UserError
from lensae.core.paths import SaeEntry, find_pair
from lensae.sae.metrics.bootstrap import interval
from lensae.stages.evaluate import losses
from lensae.stages.evaluate import reconstruction as rows
from lensae.stages.evaluate.compare import Compared, compare
from lensae.stages.evaluate.losses import Losses
from lensae.stages.evaluate.report import SEED, Column, EvaluationReport, LossReport, summary
from lensae.stages.evaluate.transcoders import check_order, target_of
from lensae.stages.index import check_match
from lensae.stages.shared.models import load_model_of
from lensae.stages.shared.progress import Progress, Silent
from lensae.store.pairs import Rows
from lensae.store.reader import SetReader, Split

CE_TOKENS = 5000


def evaluate(
    set_name: str | None = None, sae_name: str | None = None, progress: Progress | None = None
) -> EvaluationReport:
    """Measure the SAE and its baselines on the documents held out of its training; evaluation.json goes beside it.

    A transcoder is measured on the rows that it predicts, which replace those of the model in the same pass.
    Documents collected since then count as held out when their prompt would have been. An SAE that was not trained
    here is measured on the documents that a training with seed 0 would hold out. In a folder that cannot be written
    to nothing is left (`folder` is None).
    """
    progress = progress or Silent()
    started = time.perf_counter()
    entry, sae_entry = find_pair(set_name, sae_name)
    reader = SetReader(entry)
    from lensae.sae.formats.saelens import load

    sae = load(sae_entry.path)
    check_match(entry, sae_entry, sae.cfg)
    target = target_of(reader, sae_entry, sae.cfg)
    split, described = _split(reader, sae_entry)
    if not split.heldout.documents:
        raise UserError(f"{entry.name} has no documents to hold out", "collect from at least two prompts")
    model = load_model_of(entry, [one.entry.manifest.hook for one in (reader, target) if one])
    if target:
        check_order(model, reader, target)
    training, heldout = _sides(reader, target, split, sae_entry)
    held = rows.hold_out(heldout)
    compared = compare(sae, held, training, model.device, progress)
    chosen = heldout.selection.spread(round(heldout.selection.documents * CE_TOKENS / heldout.selection.rows))
    replaced = {system.name: system.predict for system in compared.systems if system.run}
    hook_out = target.entry.manifest.hook if target else None
    measured = losses.measure(model, reader, chosen, replaced, progress, hook_out)
    report = EvaluationReport(
        set_name=entry.name,
        target_name=target.entry.name if target else "",
        sae_name=sae_entry.name,
        d_sae=sae.d_sae,
        documents=split.heldout.documents,
        heldout=described,
        folder=sae_entry.path if os.access(sae_entry.path, os.W_OK) else None,
        seconds=time.perf_counter() - started,
        **_figures(held, compared, measured),
    )
    if report.folder:
        write_json(report.folder / "evaluation.json", summary(report))
    return report


def _figures(held: rows.HeldOutRows, compared: Compared, measured: Losses) -> dict:
    """The fields of the report that are measured."""
    systems = zip(compared.systems, compared.scores, strict=True)
    own = compared.scores[0]
    return {
        "prompts": held.groups,
        "massive_norm": held.means.massive_norm,
        "baseline_rows": compared.baseline_rows,
        "columns": tuple(_column(system, scored, measured) for system, scored in systems),
        "splice_tokens": measured.splice_tokens,
        "splice_difference": measured.splice_difference,
        "density": own.density_F,
        "activation_counts": own.activation_counts,
        "zeros": own.zeros,
        "nearest_cosine": compared.nearest_cosine,
    }


def _split(reader: SetReader, sae_entry: SaeEntry) -> tuple[Split, str]:
    """The two sides of the set for this SAE, and in words why these."""
    record = sae_entry.training
    if record is None:
        return reader.split(0.1, 0), "not trained here: a tenth of the prompts by seed 0, which it may have seen"
    if record.heldout_limit is None:
        return reader.split(record.recipe.heldout, record.recipe.seed), "held out of its training"
    return reader.split_at(record.heldout_limit, record.recipe.seed), "held out of its training"


def _sides(reader: SetReader, target: SetReader | None, split: Split, sae_entry: SaeEntry) -> tuple[Rows, Rows]:
    """The training and the held-out rows, with those of the target."""
    if target is None:
        return Rows(reader, split.training), Rows(reader, split.heldout)
    other = target.split_at(split.limit, sae_entry.training.recipe.seed if sae_entry.training else 0)
    return (
        Rows(reader, split.training, (target, other.training)),
        Rows(reader, split.heldout, (target, other.heldout)),
    )


def _column(system: rows.System, scored: rows.Scored, measured: Losses) -> Column:
    from lensae.sae.metrics import reconstruction as metrics

    figures, sums_GS = dict(scored.figures), scored.sums_GS
    name = "clean" if system.name == "raw" else system.name
    loss_GS = measured.of(name)
    if system.name not in ("sae", "random"):  # all their numbers are always in use
        figures |= {"dead_share": None, "dense_share": None}
    statistics = {
        "explained_variance_typical": (metrics.explained_variance_typical, sums_GS),
        "explained_variance": (metrics.explained_variance, sums_GS),
        "l0": (metrics.mean_active, sums_GS),
        "ce_recovered": (losses.ce_recovered, loss_GS),
        "kl_recovered": (losses.kl_recovered, loss_GS),
    }
    intervals = {key: interval(sums, function, SEED) for key, (function, sums) in statistics.items()}
    return Column(
        name=system.name,
        title=system.title,
        figures=figures,
        loss=_loss_report(loss_GS.sum(0)),
        intervals=intervals,
    )


def _loss_report(sums_S: np.ndarray) -> LossReport:
    tokens = int(sums_S[losses.TOKENS])
    _one, clean, zero, kl_zero, ce, kl = (sums_S / max(tokens, 1)).tolist()
    return LossReport(
        tokens=tokens,
        ce_clean=clean,
        ce_sae=ce,
        ce_zero=zero,
        ce_recovered=float(losses.ce_recovered(sums_S)),
        kl_sae=kl,
        kl_zero=kl_zero,
        kl_recovered=float(losses.kl_recovered(sums_S)),
    )
