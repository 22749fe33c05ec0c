"""store: what sets there are, and whether they are whole."""

from __future__ import annotations

from lensae.paths import SetEntry, find_set, list_saes, list_sets


def rows() -> list[dict]:
    """A line of facts per set."""
    return [_facts(entry) for entry in list_sets()]


def _facts(entry: SetEntry) -> dict:
    manifest = entry.manifest
    return {
        "name": entry.name,
        "path": str(entry.path),
        "model": manifest["model"]["name"],
        "hook": manifest["hook"],
        "rows": entry.rows,
        "documents": sum(shard["documents"] for shard in manifest["shards"]),
        "width": manifest["width"],
        "dtype": manifest["dtype"],
        "bytes": sum(shard["bytes"] for shard in manifest["shards"]),
        "completed_at": entry.completed_at,
        "saes": [sae.name for sae in list_saes(entry)],
    }


def info(name: str | None = None) -> dict:
    """Everything about one set."""
    entry = find_set(name)
    model = entry.manifest["model"]
    return {
        **_facts(entry),
        "shards": len(entry.manifest["shards"]),
        "weights_sha256": model["weights_sha256"],
        "versions": " ".join(f"{k} {v}" for k, v in entry.manifest["versions"].items()),
        "passes": entry.manifest["passes"],
    }


def any_set(name: str | None) -> SetEntry:
    """A set to be checked: an unfinished one will do when it is named."""
    if name:
        for entry in list_sets():
            if name in (entry.name, str(entry.path)):
                return entry
    return find_set(name)
