"""experiment: a recipe's stages one after the other, from the corpus to steered text, with a report at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lensae.core.durable import write_json
from lensae.core.errors import UserError, nearest
from lensae.core.paths import experiments_root
from lensae.core.recipe import TrainRecipe, load_train, table
from lensae.core.records import Example, FeatureStats, LabelScore
from lensae.stages import features as lookup
from lensae.stages import index
from lensae.stages.collect import run as collect
from lensae.stages.collect.options import CollectReport
from lensae.stages.evaluate import run as evaluate
from lensae.stages.evaluate.report import EvaluationReport
from lensae.stages.shared.progress import Progress
from lensae.stages.steer import run as steer
from lensae.stages.steer.report import SteerReport
from lensae.stages.train import run as train
from lensae.stages.train.data import open_data
from lensae.stages.train.record import find_trained
from lensae.stages.train.watcher import Watcher

CANDIDATES, SELDOM = 16, 0.02
TABLES = ("collect", "train", "features", "steer")


@dataclass(frozen=True)
class StageReport:
    """One stage of an experiment and its report."""

    stage: str
    report: Any


@dataclass(frozen=True)
class ChosenFeature:
    """A feature picked for its label, with its strongest examples."""

    lookup: lookup.Lookup
    score: LabelScore
    stats: FeatureStats
    examples: list[Example]


def run(
    path: Path, progress: Progress, new_watcher: Callable[[], AbstractContextManager[Watcher]]
) -> Iterator[StageReport | str]:
    """Run the recipe. Yields each stage's command line before it starts (str) and its report when it is done.

    A pass that is complete, and an SAE already trained by the same recipe on the same rows, are used as they are.
    Raises UserError for a recipe that cannot be used.
    """
    recipe = load(path)
    yield _line("collect", recipe["collect"])
    options = collect.CollectOptions(**recipe["collect"])
    collected = collect.collect(options, _line("collect", recipe["collect"]), progress)
    assert collected is not None, "an experiment is run by one process"
    yield StageReport("collect", collected)
    set_name = "/".join(collected.paths[0].parts[-2:])

    yield _line("train", {**recipe["train"], "set": set_name, "index": False})
    settings = load_train(path)
    sae = find_trained(open_data(settings, set_name), settings)
    if sae is None:
        with new_watcher() as watcher:
            trained = train.train(settings, set_name, None, watcher, index=False)
        assert trained is not None, "an experiment is run by one process"
        sae = trained.sae
        yield StageReport("train", trained)
    sae_name = sae.name
    yield _line("evaluate", {})
    evaluated = evaluate.evaluate(set_name, sae_name, progress)
    yield StageReport("evaluate", evaluated)
    yield _line("index", {})
    yield StageReport("index", index.build(set_name, sae_name, progress))

    opened = lookup.open_lookup(set_name, sae_name)
    chosen = choose(opened, **recipe["features"])
    for feature in chosen:
        yield f"features top {feature.stats.feature} --k {len(feature.examples)}"
        yield StageReport("features", feature)
    scales = tuple(float(s) for s in recipe["steer"]["scales"])
    target = chosen[0].stats.feature
    samples = int(recipe["steer"].get("samples", 4))
    yield f"steer --feature {target} {' '.join(f'--scale {s:g}' for s in scales)} --samples {samples}"
    steering = steer.SteerOptions(target, scales, samples=samples, set_name=set_name, sae_name=sae_name)
    steered = steer.steer(steering, progress)
    yield StageReport("steer", steered)
    yield StageReport("results", _write(path, collected, settings, evaluated, chosen, steered))


def load(path: Path) -> dict[str, dict]:
    """The recipe's tables; raises UserError for a table or a key that is not known."""
    known = {
        "collect": set(collect.CollectOptions.__dataclass_fields__),
        "features": {"count", "k"},
        "steer": {"scales", "samples"},
    }
    recipe = {name: table(path, name) for name in TABLES}
    for name, keys in known.items():
        for key in recipe[name]:
            if key not in keys:
                raise UserError(f"{path}: unknown key '{key}' in [{name}]", nearest(key, keys))
    recipe["collect"] = {k: tuple(v) if isinstance(v, list) else v for k, v in recipe["collect"].items()}
    return recipe


def choose(opened: lookup.Lookup, count: int = 3, k: int = 5) -> list[ChosenFeature]:
    """A feature for each of `count` labels, best first: of the features that best tell a label apart (AUROC), those
    with the purest activation (times share) that fire seldom enough for their examples to show what they are about."""
    density = opened.index.table()["density"]
    scores = [score for score in lookup.by_label(opened, CANDIDATES) if density[score.feature] <= SELDOM]
    chosen: dict[str, ChosenFeature] = {}
    for score in sorted(scores, key=lambda score: -score.auroc * score.share):
        if score.label not in chosen and len(chosen) < count:
            stats = opened.index.stats(score.feature)
            chosen[score.label] = ChosenFeature(opened, score, stats, lookup.top(opened, score.feature, k))
    if not chosen:
        raise UserError(f"no feature of {opened.sae.name} tells the labels apart", "train longer, or collect more text")
    return list(chosen.values())


def _line(stage: str, options: dict) -> str:
    """The command line that does what a table of the recipe does."""
    words = [stage]
    for key, value in options.items():
        flag = "--" + key.replace("_", "-")
        if key == "model":
            words.insert(1, str(value))
        elif key == "hooks":
            words += [f"--hook {hook}" for hook in value]
        elif isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            words.append(f"{flag} {value}")
    return " ".join(words)


def _write(
    path: Path,
    collected: CollectReport,
    recipe: TrainRecipe,
    evaluated: EvaluationReport,
    chosen: list[ChosenFeature],
    steered: SteerReport,
) -> Path:
    target = experiments_root() / "results" / f"{path.stem}.json"
    runs = [vars(run) for run in (steered.baseline, *steered.steered, *steered.controls)]
    write_json(
        target,
        {
            "recipe": path.name,
            "collect": {
                "documents": collected.documents,
                "rows": collected.rows,
                "seconds": collected.seconds,
                "tokens_per_second": collected.tokens_per_second,
            },
            "train": asdict(recipe),
            "evaluate": evaluate.summary(evaluated),
            "features": [{**asdict(f.stats), **asdict(f.score)} for f in chosen],
            "steer": {
                "feature": steered.options.feature,
                "label": steered.label,
                "best_scale": steered.best.scale if steered.best else None,
                "prompts": list(steered.prompts),
                "runs": runs,
            },
        },
    )
    return target
