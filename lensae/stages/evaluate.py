"""evaluate: an SAE on the held-out documents of its set, reconstruction first, then what it costs the model."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from lensae import model as models
from lensae.durable import write_json
from lensae.errors import LensaeError, UserError
from lensae.paths import SetEntry, find_pair
from lensae.stages.index import check_match
from lensae.stages.progress import Progress, Silent
from lensae.store.reader import Selection, SetReader

CE_TOKENS = 5000
# Bins of the activation histogram: steps of a factor 2^(1/8) from 2^-8 to 2^16.
EDGES = 2.0 ** np.linspace(-8, 16, 193)


@dataclass(frozen=True)
class LossReport:
    """Losses in nats per token with the stream as it is, replaced by the SAE's reconstruction, and set to zero.

    Special tokens are never replaced, and are not counted as targets.
    """

    tokens: int
    ce_clean: float
    ce_sae: float
    ce_zero: float
    ce_recovered: float
    kl_sae: float
    kl_zero: float
    kl_recovered: float


@dataclass(frozen=True)
class EvaluationReport:
    """Everything `evaluate` measured; `density` and `activation_counts` are for the histograms."""

    set_name: str
    sae_name: str
    d_sae: int
    documents: int
    figures: dict
    loss: LossReport
    seconds: float
    density: np.ndarray = field(repr=False)
    activation_counts: np.ndarray = field(repr=False)
    zeros: int = 0
    folder: Path | None = None


def evaluate(
    set_name: str | None = None, sae_name: str | None = None, progress: Progress | None = None
) -> EvaluationReport:
    """Measure the SAE on the documents that were held out of its training, and write evaluation.json beside it.

    Documents collected since then count as held out when their prompt would have been. An SAE that was not trained
    here is measured on the documents that a training with seed 0 would hold out.
    """
    progress = progress or Silent()
    started = time.perf_counter()
    entry, sae_entry = find_pair(set_name, sae_name)
    reader = SetReader(entry)
    from lensae.sae.checkpoint import load

    sae = load(sae_entry.path)
    check_match(entry, sae_entry, sae.cfg)
    heldout = _heldout(reader, sae_entry.training)
    if not heldout.documents:
        raise UserError(f"{entry.name} has no documents to hold out", "collect from at least two prompts")
    figures, density, counts, zeros = _reconstruction(reader, sae, heldout, progress)
    loss = _losses(reader, sae, heldout, progress)
    report = EvaluationReport(
        entry.name,
        sae_entry.name,
        sae.d_sae,
        heldout.documents,
        figures,
        loss,
        time.perf_counter() - started,
        density,
        counts,
        zeros,
        sae_entry.path,
    )
    write_json(sae_entry.path / "evaluation.json", summary(report))
    return report


def _heldout(reader: SetReader, training: dict) -> Selection:
    seed = training.get("recipe", {}).get("seed", 0)
    if "heldout_limit" in training:
        return reader.split_at(training["heldout_limit"], seed).heldout
    return reader.split(0.1, seed).heldout


def summary(report: EvaluationReport) -> dict:
    """The report as plain values, for JSON."""
    return {
        "set": report.set_name,
        "sae": report.sae_name,
        "heldout_documents": report.documents,
        "reconstruction": report.figures,
        "loss": asdict(report.loss),
        "seconds": round(report.seconds, 3),
    }


def _reconstruction(reader: SetReader, sae, heldout: Selection, progress: Progress):
    import torch

    from lensae.model.precision import fast_matmul
    from lensae.sae.evaluate import Accumulator

    total = Accumulator(sae.d_in, sae.d_sae)
    counts, zeros = np.zeros(len(EDGES) - 1, np.int64), 0
    progress.start("reconstructing held-out rows", heldout.rows, "rows")
    with torch.inference_mode(), fast_matmul():
        for batch in reader.batches(heldout, 2048):
            x_BD = torch.from_numpy(batch)
            features_BF = sae.encode(x_BD)
            total.add(x_BD, sae.decode(features_BF), features_BF)
            fired = features_BF[features_BF > 0].numpy()
            counts += np.histogram(np.clip(fired, EDGES[0], EDGES[-1]), EDGES)[0]
            zeros += features_BF.numel() - len(fired)
            progress.advance(len(batch))
    result = total.result()
    figures = {name: value for name, value in vars(result).items() if name != "density"}
    return figures, result.density.numpy(), counts, zeros


def _losses(reader: SetReader, sae, heldout: Selection, progress: Progress) -> LossReport:
    """Run some of the held-out documents, evenly chosen, three times through the model."""
    import torch

    from lensae.model.score import next_token_logprobs, scoring_batches
    from lensae.steering import measure
    from lensae.steering.edits import Replacement, reconstruct

    hook = reader.entry.manifest["hook"]
    model = load_model_of(reader.entry, [hook])
    chosen = heldout.spread(round(heldout.documents * CE_TOKENS / heldout.rows))
    sequences = [document.input_ids.tolist() for document in reader.documents(chosen)]
    special = torch.tensor(sorted(model.text.special_ids))
    edits = {"sae": Replacement(hook, reconstruct(sae.to(model.device))), "zero": Replacement(hook, torch.zeros_like)}
    ce: dict[str, list[float]] = {"clean": [], "sae": [], "zero": []}
    kl: dict[str, list[float]] = {"sae": [], "zero": []}
    progress.start("running held-out documents through the model", sum(map(len, sequences)), "tokens")
    for batch in scoring_batches(model, sequences):
        ids = [sequences[i] for i in batch]
        clean = next_token_logprobs(model, ids)
        changed = {name: next_token_logprobs(model, ids, [edit]) for name, edit in edits.items()}
        for b, sequence in enumerate(ids):
            target = torch.tensor(sequence[1:], device=clean[b].device)
            counted = ~torch.isin(target, special.to(target.device))
            ce["clean"] += measure.cross_entropy(clean[b][:-1], target)[counted].tolist()
            for name, logp in changed.items():
                ce[name] += measure.cross_entropy(logp[b][:-1], target)[counted].tolist()
                kl[name] += measure.kl(clean[b][:-1], logp[b][:-1])[counted].tolist()
        progress.advance(sum(map(len, ids)))
    mean = {name: float(np.mean(values)) for name, values in ce.items()}
    divergence = {name: float(np.mean(values)) for name, values in kl.items()}
    return LossReport(
        len(ce["clean"]),
        mean["clean"],
        mean["sae"],
        mean["zero"],
        measure.recovered(mean["clean"], mean["sae"], mean["zero"]),
        divergence["sae"],
        divergence["zero"],
        measure.recovered(0.0, divergence["sae"], divergence["zero"]),
    )


def load_model_of(entry: SetEntry, hooks: list[str]):
    """The model that a set was collected from; raises when its weights are not the same any more."""
    described = entry.manifest["model"]
    source = models.resolve(described["path"] or described["name"])
    if source.weights_digest() != described["weights_sha256"]:
        raise LensaeError(
            f"the weights of {described['name']} have changed since {entry.name} was collected", "collect it again"
        )
    return models.load(source, hooks)
