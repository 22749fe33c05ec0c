"""evaluate: an SAE on the held-out documents of its set, reconstruction first, then what it costs the model."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import numpy as np

from lensae.durable import write_json
from lensae.errors import UserError
from lensae.paths import SaeEntry, find_pair
from lensae.sae.bootstrap import interval
from lensae.stages import losses
from lensae.stages import reconstruction as rows
from lensae.stages.evaluation import SEED, Column, EvaluationReport, LossReport, summary
from lensae.stages.index import check_match
from lensae.stages.losses import Losses
from lensae.stages.models import load_model_of
from lensae.stages.progress import Progress, Silent
from lensae.store.reader import SetReader, Split

CE_TOKENS = 5000


def evaluate(
    set_name: str | None = None, sae_name: str | None = None, progress: Progress | None = None
) -> EvaluationReport:
    """Measure the SAE and its baselines on the documents held out of its training; evaluation.json goes beside it.

    Documents collected since then count as held out when their prompt would have been. An SAE that was not trained
    here is measured on the documents that a training with seed 0 would hold out. In a folder that cannot be written
    to nothing is left (`folder` is None).
    """
    progress = progress or Silent()
    started = time.perf_counter()
    entry, sae_entry = find_pair(set_name, sae_name)
    reader = SetReader(entry)
    from lensae.sae.checkpoint import load

    sae = load(sae_entry.path)
    check_match(entry, sae_entry, sae.cfg)
    _check_is_autoencoder(sae_entry, sae.cfg)
    split, described = _split(reader, sae_entry)
    if not split.heldout.documents:
        raise UserError(f"{entry.name} has no documents to hold out", "collect from at least two prompts")
    model = load_model_of(entry, [entry.manifest["hook"]])
    held = rows.hold_out(reader, split.heldout)
    systems, scores, used, cosines = _reconstruct(reader, held, split, sae, model.device, progress)
    chosen = held.selection.spread(round(held.selection.documents * CE_TOKENS / held.selection.rows))
    replaced = {s.name: (lambda x, run=s.run: run(x)[0]) for s in systems if s.name != "raw"}
    measured = losses.measure(model, reader, chosen, replaced, progress)
    report = EvaluationReport(
        entry.name,
        sae_entry.name,
        sae.d_sae,
        split.heldout.documents,
        held.groups,
        described,
        used,
        tuple(_column(system, scored, measured) for system, scored in zip(systems, scores, strict=True)),
        measured.splice_tokens,
        measured.splice_difference,
        time.perf_counter() - started,
        scores[0].density_F,
        scores[0].activation_counts,
        scores[0].zeros,
        cosines,
        sae_entry.path if os.access(sae_entry.path, os.W_OK) else None,
    )
    if report.folder:
        write_json(report.folder / "evaluation.json", summary(report))
    return report


def _check_is_autoencoder(sae_entry: SaeEntry, cfg: dict) -> None:
    """The SAELens layout names an output width for transcoders only."""
    if "d_out" in cfg:
        raise UserError(
            f"'{sae_entry.name}' is a transcoder", "evaluate measures SAEs, which give back the stream that they read"
        )


def _split(reader: SetReader, sae_entry: SaeEntry) -> tuple[Split, str]:
    """The two sides of the set for this SAE, and in words why these."""
    training = sae_entry.training
    seed = training.get("recipe", {}).get("seed", 0)
    if "heldout_limit" in training:
        return reader.split_at(training["heldout_limit"], seed), "held out of its training"
    if "recipe" in training:
        return reader.split(training["recipe"].get("heldout", 0.1), seed), "held out of its training"
    words = "not trained here: a tenth of the prompts by seed 0, which it may have seen"
    return reader.split(0.1, seed), words


def _reconstruct(reader: SetReader, held: rows.HeldOut, split: Split, sae, device: str, progress: Progress):
    """The systems, the SAE first, with their scores; the training rows used; the decoders' nearest cosines."""
    import torch

    from lensae.model.precision import fast_matmul
    from lensae.sae.baselines import random_sae
    from lensae.sae.evaluate import nearest_cosine

    systems, cosines, used = [rows.of_sae("sae", "SAE", sae, device)], {}, 0
    progress.start("reconstructing held-out rows", held.selection.rows, "rows")
    scores = [rows.score(held, systems[0], device, progress)]
    with torch.inference_mode(), fast_matmul():
        cosines["sae"] = nearest_cosine(sae.W_dec.to(device)).cpu().numpy()
        if split.training.documents:
            l0 = scores[0].figures["l0"]
            covariance, sample_BD = rows.training_rows(reader, split.training, sae.d_sae, progress)
            pca, drawn, used = covariance.pca(round(l0)), random_sae(sae, l0, sample_BD, SEED), covariance.n
            systems.append(rows.System("pca", "PCA", len(pca.basis_KD), _plain(pca.to(device))))
            systems.append(rows.of_sae("random", "random SAE", drawn, device))
            cosines["random"] = nearest_cosine(drawn.W_dec.to(device)).cpu().numpy()
    systems.append(rows.System("raw", "raw stream", reader.width, _plain(lambda x: x)))
    progress.start("reconstructing them with the baselines", held.selection.rows * len(systems[1:]), "rows")
    return systems, scores + [rows.score(held, s, device, progress) for s in systems[1:]], used, cosines


def _plain(function: Callable) -> Callable:
    """A reconstruction without features."""
    return lambda x: (function(x), None)


def _column(system: rows.System, scored: rows.Scored, measured: Losses) -> Column:
    from lensae.sae import evaluate as metrics

    figures, sums_GS = dict(scored.figures), scored.sums_GS
    name = "clean" if system.name == "raw" else system.name
    loss_GS = measured.of(name)
    if system.name in ("pca", "raw"):  # all their numbers are always in use
        figures |= {"dead_share": None, "dense_share": None}
    statistics = {
        "explained_variance": (metrics.explained_variance, sums_GS),
        "l0": (metrics.mean_active, sums_GS),
        "ce_recovered": (losses.ce_recovered, loss_GS),
        "kl_recovered": (losses.kl_recovered, loss_GS),
    }
    intervals = {key: interval(sums, function, SEED) for key, (function, sums) in statistics.items()}
    return Column(system.name, system.title, figures, _loss_report(loss_GS.sum(0)), intervals)


def _loss_report(sums_S: np.ndarray) -> LossReport:
    tokens = int(sums_S[losses.TOKENS])
    _one, clean, zero, kl_zero, ce, kl = (sums_S / max(tokens, 1)).tolist()
    ce_recovered, kl_recovered = float(losses.ce_recovered(sums_S)), float(losses.kl_recovered(sums_S))
    return LossReport(tokens, clean, ce, zero, ce_recovered, kl, kl_zero, kl_recovered)
