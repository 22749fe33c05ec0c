"""What a set's manifest.json must hold before anything is done with it: it may have been edited by hand."""

from __future__ import annotations

import re
from pathlib import Path

from lensae.errors import DamagedError

NEWEST = 1  # the schema of shards and manifests that this version writes
SHARD_FILE = re.compile(r"\d{5,}(-\d+)?\.h5")
SET = {"schema": int, "model": dict, "hook": str, "width": int, "dtype": str, "passes": list, "shards": list}
MODEL = {"name": str, "path": str, "weights_sha256": str, "tokenizer_sha256": str}
PASS = {"spec": dict, "corpus": str, "command": str, "started_at": str, "completed_at": (str, type(None))}
SHARD = {"file": str, "rows": int, "documents": int, "pass": int, "first_document": int, "bytes": int, "sha256": str}
HINT = "it was edited or cut short"


def check_manifest(manifest: dict, path: Path) -> None:
    """Raise DamagedError naming the first entry of the manifest at `path` that cannot be right."""
    _check(manifest, SET, f"{path}")
    if manifest["schema"] > NEWEST:
        raise DamagedError(f"{path} was written by a newer lensae", "upgrade lensae to read it")
    _check(manifest["model"], MODEL, f"{path}: model")
    for number, made in enumerate(manifest["passes"]):
        _check(made, PASS, f"{path}: passes[{number}]")
    files = set()
    for number, shard in enumerate(manifest["shards"]):
        where = f"{path}: shards[{number}]"
        _check(shard, SHARD, where)
        if not SHARD_FILE.fullmatch(shard["file"]) or shard["file"] in files:
            raise DamagedError(f"{where} has the file {shard['file']!r}", HINT)
        if not 0 <= shard["pass"] < len(manifest["passes"]):
            raise DamagedError(f"{where} is of pass {shard['pass']}, which is not there", HINT)
        files.add(shard["file"])


def _check(value: object, keys: dict, where: str) -> None:
    if not isinstance(value, dict):
        raise DamagedError(f"{where} is not an object", HINT)
    for key, kind in keys.items():
        if key not in value:
            raise DamagedError(f"{where} lacks '{key}'", HINT)
        found = value[key]
        if not isinstance(found, kind) or isinstance(found, bool) or (isinstance(found, int) and found < 0):
            raise DamagedError(f"{where} has {key} {str(found)[:40]!r}", HINT)
