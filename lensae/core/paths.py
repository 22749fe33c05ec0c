"""Where sets, SAEs and indexes live, and how the current one is chosen.

    <store>/<model>/<hook>/                 an activation set   (manifest.json, shards/)
    <store>/<model>/<hook>/saes/<name>/     an SAE              (cfg.json, sae_weights.safetensors, training.json)
    <store>/<model>/<hook>/saes/<name>/index/   its feature index
    <store>/<model>/<hook>/sweeps/<name>/   a comparison of SAEs that were trained together  (sweep.json)

The current SAE is the one whose training finished last, or that a sweep chose last: sweep.json names the winner and
when it was chosen, and a training that finishes later takes its place. The current set is the one of the current SAE,
or for commands that need no SAE the one whose collection finished last.

The store is the one that `use_store` names, else what LENSAE_STORE names, else `./store`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from lensae.core.errors import UserError, nearest
from lensae.core.manifest import Manifest, read_manifest
from lensae.core.program import command
from lensae.core.training_record import SWEEP, TRAINING, TrainingRecord, read_sweep, read_training

_store: ContextVar[Path | None] = ContextVar("store", default=None)


@contextmanager
def use_store(path: Path) -> Iterator[None]:
    """The store is the folder `path` until the end, in this thread."""
    token = _store.set(path)
    try:
        yield
    finally:
        _store.reset(token)


def store_root() -> Path:
    """The folder that holds every activation set."""
    return _store.get() or Path(os.environ.get("LENSAE_STORE", "store"))


def free_bytes() -> int:
    """Room on the disk that holds the store, or will."""
    folder = store_root().absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def experiments_root() -> Path:
    """The folder for recipes and what they write."""
    return Path(os.environ.get("LENSAE_EXPERIMENTS", "experiments"))


def safe_name(name: str) -> str:
    """A model or set name as a folder name: "/" becomes "--"."""
    return name.strip("/").replace("/", "--").replace("\\", "--")


def set_path(model: str, hook: str) -> Path:
    """The folder of the activation set of `model` (or of the set's own name) at `hook`."""
    return store_root() / safe_name(model) / hook


@dataclass(frozen=True)
class SetEntry:
    """An activation set on disk; `completed_at` is "" while no collection pass has finished."""

    path: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        """`<model>/<hook>`, as `--set` takes it."""
        return f"{self.path.parent.name}/{self.path.name}"

    @property
    def completed_at(self) -> str:
        """The ISO time at which the last finished pass ended."""
        return max((one.completed_at or "" for one in self.manifest.passes), default="")

    @property
    def rows(self) -> int:
        """Activation rows in whole shards."""
        return sum(shard.rows for shard in self.manifest.shards)


@dataclass(frozen=True)
class SaeEntry:
    """An SAE on disk, or its unfinished training; `training` is None for an SAE that was not trained here, `chosen_at`
    the ISO time at which a sweep last chose it ("" if none did)."""

    path: Path
    training: TrainingRecord | None
    chosen_at: str = ""

    @property
    def name(self) -> str:
        """The folder's name, as `--sae` takes it."""
        return self.path.name

    @property
    def index_path(self) -> Path:
        """Where the SAE's feature index lives."""
        return self.path / "index"

    @property
    def record(self) -> TrainingRecord:
        """The record of its training; raises UserError for an SAE that was not trained here."""
        if self.training is None:
            raise UserError(f"nothing is recorded of how the SAE '{self.name}' was trained")
        return self.training

    @property
    def completed_at(self) -> str:
        """The ISO time at which training ended; "" when it has not, or was not done here."""
        return self.training.completed_at if self.training else ""

    @property
    def is_finished(self) -> bool:
        """Whether the SAE is whole: a training that was interrupted leaves none."""
        return self.training is None or bool(self.completed_at)

    @property
    def current_since(self) -> str:
        """The ISO time at which it became the current SAE; "" while it is unfinished."""
        return max(self.completed_at, self.chosen_at) if self.is_finished else ""


def list_sets() -> list[SetEntry]:
    """Every activation set below the store, oldest completion first."""
    entries = [read_set(path.parent) for path in sorted(store_root().glob("*/*/manifest.json"))]
    return sorted(entries, key=lambda entry: entry.completed_at)


def read_set(path: Path) -> SetEntry:
    """The set in folder `path`; raises DamagedError when its manifest cannot be used."""
    return SetEntry(path, read_manifest(path))


def find_set(name: str | None = None) -> SetEntry:
    """The set that `name` means (`<model>/<hook>`, `<hook>`, `<model>` or a folder), or the current one.

    Raises UserError when there is none, when it is ambiguous, or when no collection pass of it has finished.
    """
    entry = _named_set(name) if name else _latest_set()
    if not entry.completed_at:
        passes = entry.manifest.passes
        resume = passes[-1].command if passes else command("collect")
        raise UserError(f"the activation set {entry.name} is unfinished", f"resume with: {resume}")
    return entry


def _latest_set() -> SetEntry:
    entries = list_sets()
    if not entries:
        raise UserError(f"there is no activation set in {store_root()}/", f"make one with: {command('collect')}")
    return entries[-1]


def _named_set(name: str) -> SetEntry:
    if (Path(name) / "manifest.json").is_file():
        return read_set(Path(name))
    entries, wanted = list_sets(), safe_name_pair(name)
    matches = [e for e in entries if wanted in (e.name, e.path.name, e.path.parent.name)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UserError(f"'{name}' means several sets", "say which: " + ", ".join(e.name for e in matches))
    names = [e.name for e in entries]
    hint = nearest(name, names) or f"{command('store list')} shows every set"
    raise UserError(f"no activation set named '{name}'", hint)


def safe_name_pair(name: str) -> str:
    """`<model>/<hook>` with any further "/" of the model's name replaced as on disk."""
    model, slash, hook = name.rstrip("/").rpartition("/")
    return f"{safe_name(model)}/{hook}" if slash and hook.startswith("blocks.") else safe_name(name)


def list_saes(entry: SetEntry) -> list[SaeEntry]:
    """Every SAE trained on the set, finished or not; the current one is the last."""
    chosen_at: dict[str | None, str] = {}
    for path in entry.path.glob(f"sweeps/*/{SWEEP}"):
        sweep = read_sweep(path)
        chosen_at[sweep.winner] = max(sweep.completed_at, chosen_at.get(sweep.winner, ""))
    folders = [path.parent for path in sorted(entry.path.glob(f"saes/*/{TRAINING}"))]
    saes = [SaeEntry(folder, read_training(folder), chosen_at.get(folder.name, "")) for folder in folders]
    return sorted(saes, key=lambda sae: sae.current_since)


def find_sae(entry: SetEntry, name: str | None = None) -> SaeEntry:
    """The SAE of the set that `name` means (a name or a folder), or the current one.

    Raises UserError when there is none, or when its training has not finished.
    """
    if name and _is_sae(Path(name)):
        saes = [SaeEntry(Path(name), read_training(Path(name)))]
    else:
        saes = list_saes(entry)
        if name:
            saes = [sae for sae in saes if sae.name == name] or _no_such_sae(name, saes)
    finished = [sae for sae in saes if sae.is_finished]
    if not finished:
        if saes:
            record = saes[-1].training
            resume = (record and record.command) or command("train")
            raise UserError(f"SAE '{saes[-1].name}' is unfinished", f"resume with: {resume}")
        what = f"no SAE has been trained on {entry.name}"
        raise UserError(what, f"train one with: {command(f'train --set {entry.name}')}")
    return finished[-1]


def _is_sae(folder: Path) -> bool:
    return (folder / "cfg.json").is_file() or (folder / TRAINING).is_file()


def _no_such_sae(name: str, saes: list[SaeEntry]) -> list[SaeEntry]:
    names = [sae.name for sae in saes]
    hint = nearest(name, names) or ("known: " + ", ".join(names) if names else f"train one: {command('train')}")
    raise UserError(f"no SAE named '{name}'", hint)


def find_pair(set_name: str | None, sae_name: str | None) -> tuple[SetEntry, SaeEntry]:
    """The set and the SAE that the two options mean.

    With neither, the SAE that became current last over all sets and its set; with one alone, what goes with it.
    """
    if set_name is None:
        chosen = _set_for_sae(sae_name)
        if chosen is not None:
            return chosen
    entry = find_set(set_name)
    return entry, find_sae(entry, sae_name)


def _set_for_sae(sae_name: str | None) -> tuple[SetEntry, SaeEntry] | None:
    """The current SAE (of that name, if one is given) over all sets, or None."""
    if sae_name and _is_sae(Path(sae_name)):
        parent = Path(sae_name).resolve().parent.parent
        if not (parent / "manifest.json").is_file():
            return None
        entry = read_set(parent)
        return entry, find_sae(entry, sae_name)
    pairs = [(entry, sae) for entry in list_sets() if entry.completed_at for sae in list_saes(entry)]
    pairs = [(e, s) for e, s in pairs if sae_name in (None, s.name)]
    latest = max(pairs, key=lambda pair: pair[1].current_since, default=None)
    if latest and sae_name:
        return latest[0], find_sae(latest[0], sae_name)  # which may be unfinished, and says so
    return latest if latest and latest[1].current_since else None
