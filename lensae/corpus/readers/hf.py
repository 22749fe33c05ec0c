"""`hf:DATASET[:CONFIG][:SPLIT]`: a Hugging Face dataset from the hub or a directory, streamed; the split is `train` by
default.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lensae.core.deadline import within
from lensae.core.errors import UserError
from lensae.core.records import Prompt, ReadOptions
from lensae.corpus.readers._rows import check_columns, prompt_of

ANSWER_WITHIN_S = 4.0
HINT = "check the name and the connection to the hub; a local directory works too: hf:path/to/folder"


def read(source: str, options: ReadOptions) -> Iterator[Prompt]:
    """The documents of a dataset; a missing id is the row's number."""
    name, config, split = [*source.split(":"), "", ""][:3]
    rows = _open(name, config, split)
    for number, row in enumerate(rows, 1):
        if number == 1:
            check_columns(row, options, f"dataset {name}")
        yield prompt_of(row, options, f"dataset {name}, row {number}", number)


def identity(source: str) -> str:
    """The dataset's content: sha256 over a directory's files, or the commit that the hub names."""
    name = source.partition(":")[0]
    if not Path(name).is_dir():
        return _ask_hub(name)
    digest = hashlib.sha256()
    for path in sorted(p for p in Path(name).rglob("*") if p.is_file()):
        with open(path, "rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{path.relative_to(name)}\0{content}\0".encode())
    return digest.hexdigest()


def _open(name: str, config: str, split: str) -> Any:
    import datasets

    datasets.disable_progress_bars()
    if not Path(name).is_dir():
        _ask_hub(name)
    try:
        if (Path(name) / "dataset_info.json").is_file() or (Path(name) / "dataset_dict.json").is_file():
            saved = datasets.load_from_disk(name)
            return saved[split or "train"] if isinstance(saved, datasets.DatasetDict) else saved
        return datasets.load_dataset(name, config or None, split=split or "train", streaming=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"dataset '{name}' cannot be opened: {reason}", HINT) from None


def _ask_hub(name: str) -> str:
    """The dataset's commit, in one request: `datasets` itself retries an unknown name for half a minute."""
    from huggingface_hub import HfApi

    answer: list[str] = []

    def ask() -> None:
        answer.append(str(HfApi().dataset_info(name, timeout=ANSWER_WITHIN_S - 0.5).sha))

    failure = within(ANSWER_WITHIN_S, ask)
    if failure is not None:
        raise UserError(f"dataset '{name}' cannot be opened: {str(failure).splitlines()[0]}", HINT)
    return answer[0]
