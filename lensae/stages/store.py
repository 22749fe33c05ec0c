"""store: listing, verifying, exporting and removing activation sets."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lensae.core.durable import clear_partials, partial_of
from lensae.core.errors import DamagedError, UserError, unknown
from lensae.core.locks import LOCK_FILE, FolderLock
from lensae.core.paths import SetEntry, find_set, list_saes, list_sets, read_set, safe_name_pair, store_root
from lensae.core.records import Fault
from lensae.core.training_record import read_training
from lensae.stages.shared.progress import Progress, Silent
from lensae.stages.train.folder import unfinished

SET_FILES = ("manifest.json", "shards", LOCK_FILE)  # a folder with any of them is an activation set, perhaps damaged


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What was checked of a set, by number of each kind, and every fault; their files are relative to the set."""

    set_name: str
    shards: int
    saes: int
    indexes: int
    faults: tuple[Fault, ...]


def rows() -> list[dict]:
    """The facts of each set, as the list shows them."""
    return [_facts(entry) for entry in list_sets()]


def _facts(entry: SetEntry) -> dict:
    manifest = entry.manifest
    return {
        "name": entry.name,
        "path": str(entry.path),
        "model": manifest.model.name,
        "hook": manifest.hook,
        "rows": entry.rows,
        "documents": sum(shard.documents for shard in manifest.shards),
        "width": manifest.width,
        "dtype": manifest.dtype,
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "completed_at": entry.completed_at,
        "saes": [sae.name for sae in list_saes(entry) if sae.is_finished],
        "unfinished_saes": [unfinished(sae) for sae in list_saes(entry) if not sae.is_finished],
    }


def info(name: str | None = None) -> dict:
    """Everything about one set."""
    entry = find_set(name)
    model = entry.manifest.model
    return {
        **_facts(entry),
        "shards": len(entry.manifest.shards),
        "weights_sha256": model.weights_sha256,
        "versions": " ".join(f"{k} {v}" for k, v in entry.manifest.versions.items()),
        "passes": [asdict(one) for one in entry.manifest.passes],
    }


def verify(name: str | None = None, progress: Progress | None = None) -> VerifyReport:
    """Read every byte of a set (an unfinished one if it is named), of its finished SAEs and of their indexes."""
    from lensae.store.verify import verify as verify_shards

    progress = progress or Silent()
    entry = any_set(name)
    saes = [path for path in sorted(entry.path.glob("saes/*")) if _is_finished_sae(path)]
    indexes = [path for path in saes if (path / "index").is_dir()]
    progress.start("verifying", len(entry.manifest.shards) + len(saes) + len(indexes), "files")
    faults: list[Fault] = []
    for _file, of_shard in verify_shards(entry):
        faults += of_shard
        progress.advance(1)
    for path in saes:
        faults += _verify_sae(path)
        progress.advance(1)
    for path in indexes:
        faults += _verify_index(path)
        progress.advance(1)
    counts = {"shards": len(entry.manifest.shards), "saes": len(saes), "indexes": len(indexes)}
    return VerifyReport(set_name=entry.name, faults=tuple(faults), **counts)


def _is_finished_sae(folder: Path) -> bool:
    """Whether there is an SAE to be checked; one without a usable training.json counts when it has been saved."""
    if not folder.is_dir() or folder.name.startswith("."):
        return False
    try:
        record = read_training(folder)
    except DamagedError:
        record = None
    return bool(record.completed_at) if record else (folder / "cfg.json").is_file()


def _verify_sae(folder: Path) -> list[Fault]:
    from lensae.sae.formats._layout import verify_sae

    return [replace(fault, file=f"saes/{folder.name}/{fault.file}") for fault in verify_sae(folder)]


def _verify_index(sae_folder: Path) -> list[Fault]:
    from lensae.index.verify import verify_index

    prefix = f"saes/{sae_folder.name}/index"
    return [Fault(f"{prefix}/{fault.file}", "file", fault.what) for fault in verify_index(sae_folder / "index")]


def any_set(name: str | None) -> SetEntry:
    """The set that `name` means, an unfinished one as well, or the current one."""
    if name:
        for entry in list_sets():
            if name in (entry.name, str(entry.path)):
                return entry
    return find_set(name)


def export(name: str | None, to: str, progress: Progress | None = None) -> dict:
    """Write a set in the format for the ending of `to`; returns what was written and how Python opens it."""
    from lensae.store import export as formats

    progress = progress or Silent()
    kind = formats.format_of(to)
    entry = find_set(name)
    progress.start("exporting", entry.rows, "rows")
    opened_by = formats.export(entry, to, progress.advance)
    facts = {key: value for key, value in _facts(entry).items() if key in ("rows", "documents", "width", "dtype")}
    return {"set": entry.name, "path": to, "format": kind, **facts, "bytes": _bytes(Path(to)), "open": opened_by}


def view(name: str | None = None) -> dict:
    """Write a set's `view.h5` anew; returns its path and how Python opens it."""
    from lensae.store.view import how_to_open, write_view

    entry = find_set(name)
    path = str(write_view(entry))
    return {"set": entry.name, "path": path, "rows": entry.rows, "open": how_to_open(entry)}


def remove(name: str, confirm: Callable[[dict], bool]) -> dict:
    """Delete a set with its SAEs, also an unfinished or damaged one, if `confirm` returns True for what would be lost.

    Raises LensaeError when a process is writing to the set.
    """
    folder = any_folder(name)
    if folder.is_symlink():
        raise UserError(f"{folder} is a link", f"name what it points to: {folder.resolve()}")
    with FolderLock(folder, hint="wait for it, or stop it first") as lock:
        contents = _contents(folder)
        confirmed = confirm(contents)
        if confirmed:
            if sys.platform == "win32":  # where an open file keeps its folder from being renamed
                lock.release()
            _delete(folder)
        return {**contents, "removed": confirmed}


def any_folder(name: str) -> Path:
    """The folder of the set that `name` means, which may be unfinished or have an unreadable manifest."""
    folders = [path for path in sorted(store_root().glob("*/*")) if _is_set(path)]
    given = Path(os.path.abspath(name))
    if (given / "manifest.json").is_file() and (given / "shards").is_dir():
        return given
    names, wanted = [f"{path.parent.name}/{path.name}" for path in folders], safe_name_pair(name)
    matches = [
        path
        for path, full in zip(folders, names, strict=True)
        if wanted in (full, path.name, path.parent.name) or path.absolute() == given
    ]
    if len(matches) > 1:
        raise UserError(
            f"'{name}' means several sets", "say which: " + ", ".join(f"{p.parent.name}/{p.name}" for p in matches)
        )
    if not matches:
        raise unknown("activation set", name, names)
    return matches[0]


def _is_set(path: Path) -> bool:
    return not path.name.startswith(".") and any((path / file).exists() for file in SET_FILES)


def _contents(folder: Path) -> dict:
    """What would be lost with the folder; `rows` is None when its manifest cannot be read."""
    try:
        entry = read_set(folder)
        rows, state = entry.rows, "finished" if entry.completed_at else "unfinished"
    except DamagedError:
        rows, state = None, "without a manifest that can be read"
    saes = sorted(path.name for path in folder.glob("saes/*") if path.is_dir() and not path.name.startswith("."))
    set_name = f"{folder.parent.name}/{folder.name}"
    return {"set": set_name, "path": str(folder), "state": state, "rows": rows, "bytes": _bytes(folder), "saes": saes}


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if not file.is_dir())


def _delete(folder: Path) -> None:
    """Rename it first, in one step, so that an interrupted deletion never leaves half a set under its name."""
    clear_partials(folder.parent)
    trash = partial_of(folder)
    trash.mkdir()
    try:
        os.replace(folder, trash / "set")  # one level deeper, where no command looks for sets
    finally:
        shutil.rmtree(trash)
    if folder.parent.parent.absolute() == store_root().absolute():
        with suppress(OSError):  # another set of the model is in it
            folder.parent.rmdir()
