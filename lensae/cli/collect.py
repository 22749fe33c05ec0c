"""collect"""

from __future__ import annotations

from typing import Annotated

import typer

from lensae.cli.options import JsonOption, command_line, examples

EXAMPLES = examples(
    "collect",
    "collect gpt2-medium --hook blocks.6.hook_resid_post",
    "collect --corpus transport --samples-per-prompt 2 --chat",
    "collect --hook 'blocks.*.hook_resid_post' --corpus probes",
    "collect --corpus my-texts.csv --text-column body --no-generate --max-tokens 1000000",
    "collect --no-generate --corpus hf:my-data --join --compute-dtype bfloat16 --compress zstd",
    "collect --steer 447:2 --sae topk-2304-k32",
)


def command(
    model: Annotated[
        str | None,
        typer.Argument(help="smollm2-135m (embedded, the default), a hub id, a model directory or a .gguf file."),
    ] = None,
    hook: Annotated[
        list[str] | None, typer.Option(help="TransformerLens hook or pattern; repeatable. Default: middle residual.")
    ] = None,
    corpus: Annotated[
        str, typer.Option(help="Shipped corpus; file, or READER:NAME, for a reader listed below; - for standard input.")
    ] = "themes",
    generate: Annotated[bool, typer.Option(help="Continue each prompt, or only read the text.")] = True,
    chat: Annotated[bool, typer.Option("--chat", help="Put each prompt in the model's chat template.")] = False,
    text_column: Annotated[str, typer.Option(help="Column (or JSON key) that holds the text.")] = "text",
    label_column: Annotated[str, typer.Option(help="Column that holds the label.")] = "label",
    lines: Annotated[
        bool | None, typer.Option("--lines/--blocks", help="Documents of a .txt file: its lines or its blocks.")
    ] = None,
    context: Annotated[int, typer.Option(help="Longest input when only reading; longer texts are cut.")] = 512,
    join: Annotated[
        bool, typer.Option("--join", help="Read texts one after the other in full contexts, not each by itself.")
    ] = False,
    max_tokens: Annotated[int | None, typer.Option(help="Bound on the whole pass.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest continuation, in tokens.")] = 96,
    samples_per_prompt: Annotated[int, typer.Option(help="Continuations of each prompt.")] = 1,
    batch_size: Annotated[
        int | None, typer.Option(help="Continuations at a time, or 32 tokens of text. Default 64; 512 on a GPU.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="Of sampling; 0 is greedy.")] = 0.9,
    seed: Annotated[int, typer.Option(help="Of sampling.")] = 0,
    dtype: Annotated[str, typer.Option(help="float16 or float32, on disk.")] = "float16",
    compute_dtype: Annotated[
        str, typer.Option(help="float32 or bfloat16 (faster; its error is measured and shown), in the model.")
    ] = "float32",
    compress: Annotated[str | None, typer.Option(help="zstd or gzip: smaller shards, more work.")] = None,
    shard_rows: Annotated[int | None, typer.Option(help="Rows a shard. Default: about 32 MiB of them.")] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out and count tokens whose activations cannot be stored.")
    ] = False,
    steer: Annotated[
        list[str] | None,
        typer.Option(help="FEATURE[:SCALE[:OPERATION]] held meanwhile: the edited stream is stored. Repeatable."),
    ] = None,
    sae: Annotated[str | None, typer.Option(help="SAE of --steer: its name or directory. Default: the latest.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the set, in place of the model's.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Run a corpus through a model and keep the activation of every prompt and generated token.

    An interrupted pass goes on where it stopped when the same command is given again. Several processes share a
    pass under torchrun: torchrun --nproc-per-node 2 main.py collect ...
    """
    given = {name: value for name, value in locals().items() if name not in ("hook", "steer", "as_json")}
    from lensae.stages.collect.run import CollectOptions, collect
    from lensae.views import collect as view
    from lensae.views.console import out
    from lensae.views.progress import Watch

    options = CollectOptions(hooks=tuple(hook or ()), steer=tuple(steer or ()), **given)
    with Watch() as watch:
        report = collect(options, command_line(), watch)
    if report is None:  # another process tells
        return
    if as_json:
        view.as_json(report)
    else:
        view.show(out(), report)
