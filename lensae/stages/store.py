"""store: what sets there are, whether they are whole, other forms of them, and taking them away."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from lensae.core.durable import clear_partials, partial_of
from lensae.core.errors import DamagedError, LensaeError, UserError, unknown
from lensae.core.paths import SetEntry, find_set, list_saes, list_sets, read_set, safe_name_pair, store_root
from lensae.stages.shared.progress import Progress, Silent
from lensae.stages.train.folder import unfinished

MARKS = ("manifest.json", "shards", ".lock")


def rows() -> list[dict]:
    """A line of facts per set."""
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


def any_set(name: str | None) -> SetEntry:
    """A set to be checked: an unfinished one will do when it is named."""
    if name:
        for entry in list_sets():
            if name in (entry.name, str(entry.path)):
                return entry
    return find_set(name)


def export(name: str | None, to: str, progress: Progress | None = None) -> dict:
    """Write a set in the format that the ending of `to` names; tells what was written and how Python opens it."""
    from lensae.store import export as formats

    progress = progress or Silent()
    kind = formats.format_of(to)
    entry = find_set(name)
    progress.start("exporting", entry.rows, "rows")
    opened_by = formats.export(entry, to, progress.advance)
    facts = {key: value for key, value in _facts(entry).items() if key in ("rows", "documents", "width", "dtype")}
    return {"set": entry.name, "path": to, "format": kind, **facts, "bytes": _bytes(Path(to)), "open": opened_by}


def view(name: str | None = None) -> dict:
    """Make a set's `view.h5` anew; tells where it is and how Python opens it."""
    from lensae.store.view import how_to_open, write_view

    entry = find_set(name)
    path = str(write_view(entry))
    return {"set": entry.name, "path": path, "rows": entry.rows, "open": how_to_open(entry)}


def remove(name: str, agree: Callable[[dict], bool]) -> dict:
    """Delete a set with its SAEs, finished or not and damaged or not, if `agree` says so on being told what goes.

    The set's lock is held meanwhile: raises LensaeError when a process is writing to the set.
    """
    from lensae.core.locks import WriterLock

    folder = any_folder(name)
    if folder.is_symlink():
        raise UserError(f"{folder} is a link", f"name what it points to: {folder.resolve()}")
    try:
        lock = WriterLock(folder)
    except LensaeError as error:
        raise LensaeError(error.what, "wait for it, or stop it first") from None
    try:
        going = _going(folder)
        removed = agree(going)
        if removed:
            _delete(folder)
        return {**going, "removed": removed}
    finally:
        lock.release()


def any_folder(name: str) -> Path:
    """The folder of the set that `name` means, which need not be finished nor have a manifest that can be read."""
    there = [path for path in sorted(store_root().glob("*/*")) if _is_set(path)]
    given = Path(os.path.abspath(name))
    if (given / "manifest.json").is_file() and (given / "shards").is_dir():
        return given
    names, wanted = [f"{path.parent.name}/{path.name}" for path in there], safe_name_pair(name)
    matches = [
        path
        for path, full in zip(there, names, strict=True)
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
    return not path.name.startswith(".") and any((path / mark).exists() for mark in MARKS)


def _going(folder: Path) -> dict:
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
    """Out of the way first, in one step, so that a delete that is cut short never leaves half a set in its place."""
    clear_partials(folder.parent)
    gone = partial_of(folder)
    gone.mkdir()
    try:
        os.replace(folder, gone / "set")  # one level deeper, where no command looks for sets
    finally:
        shutil.rmtree(gone)
    if folder.parent.parent.absolute() == store_root().absolute():
        with suppress(OSError):
            folder.parent.rmdir()
