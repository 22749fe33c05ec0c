"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

MODEL_HELP = "smollm2-135m (embedded, the default), a hub id, a model directory or a .gguf file."
CORPUS_HELP = "Shipped corpus; a file, or READER:NAME, for a reader listed below; - for standard input."
READERS = ("Readers, by the ending of a file or as READER:NAME", "corpus.readers")
SET_HELP = "Activation set: <model>/<hook> or a folder. Default: the one finished last."
SAE_HELP = "SAE: a name or a folder. Default: the one finished last, or chosen by a sweep."

ModelArgument = Annotated[str | None, typer.Argument(help=MODEL_HELP)]
SetOption = Annotated[str | None, typer.Option("--set", help=SET_HELP)]
SaeOption = Annotated[str | None, typer.Option("--sae", help=SAE_HELP)]
DEVICE_HELP = "auto, cpu, cuda, cuda:1 or mps. auto: a CUDA GPU if there is one, else the CPU."
DeviceOption = Annotated[str, typer.Option("--device", help=DEVICE_HELP)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
