"""collect"""

from __future__ import annotations

from typing import Annotated

from lensae.cli.help import RUN, examples, panel
from lensae.cli.options import CORPUS_HELP, READERS, DeviceOption, JsonOption, ModelArgument
from lensae.core.program import command_line

EXAMPLES = examples(
    "collect",
    "collect gpt2-medium --hook blocks.6.hook_resid_post",
    "collect --corpus transport --samples-per-prompt 2 --chat",
    "collect --hook 'blocks.*.hook_resid_post' --corpus probes",
    "collect --corpus my-texts.csv --text-column body --no-generate --max-tokens 1000000",
    "collect --no-generate --corpus hf:my-data --join --compute-dtype bfloat16 --compress zstd",
    "collect --steer 447:2 --sae topk-2304-k32",
    parallel="collect --no-generate --corpus my-texts.jsonl",
)
PLUGINS = READERS
read, write, steer_with, keep, run = map(
    panel, ("What to read", "What the model writes", "How to steer", "What to keep", RUN)
)


def command(
    model: ModelArgument = None,
    hook: Annotated[list[str] | None, read("TransformerLens hook or pattern. Default: the middle residual. *")] = None,
    corpus: Annotated[str, read(CORPUS_HELP)] = "themes",
    text_column: Annotated[str, read("Column (or JSON key) that holds the text.")] = "text",
    label_column: Annotated[str, read("Column that holds the label.")] = "label",
    lines: Annotated[
        bool | None, read("Documents of a .txt file: its lines or its blocks.", "--lines/--blocks")
    ] = None,
    context: Annotated[int, read("Longest input when only reading; longer texts are cut.")] = 512,
    join: Annotated[
        bool, read("Fill every context with one text after another, rather than one text each.", "--join")
    ] = False,
    max_tokens: Annotated[int | None, read("Stop the pass after so many tokens.")] = None,
    generate: Annotated[bool, write("Continue each prompt, or only read the text.")] = True,
    chat: Annotated[bool, write("Put each prompt in the model's chat template.", "--chat")] = False,
    max_new_tokens: Annotated[int, write("Longest continuation, in tokens.")] = 96,
    samples_per_prompt: Annotated[int, write("Continuations of each prompt.")] = 1,
    temperature: Annotated[float, write("Sampling temperature; 0 is greedy.")] = 0.9,
    seed: Annotated[int, write("Seed of sampling.")] = 0,
    steer: Annotated[
        list[str] | None,
        steer_with("FEATURE[:SCALE[:OPERATION]] applied while the model runs; the edited stream is stored. *"),
    ] = None,
    sae: Annotated[str | None, steer_with("SAE of --steer: a name or a folder. Default: the latest.")] = None,
    dtype: Annotated[str, keep("float16 or float32, on disk.")] = "float16",
    compress: Annotated[str | None, keep("zstd or gzip: smaller shards, more work.")] = None,
    shard_rows: Annotated[int | None, keep("Rows per shard. Default: about 32 MiB of them.")] = None,
    skip_bad: Annotated[
        bool, keep("Leave out and count tokens whose activations cannot be stored.", "--skip-bad")
    ] = False,
    name: Annotated[str | None, keep("Name of the set, in place of the model's.")] = None,
    batch_size: Annotated[
        int | None, run("Continuations at a time (of text: 32 tokens each). Default 64; 512 on a GPU.")
    ] = None,
    compute_dtype: Annotated[
        str, run("float32 or bfloat16 (faster; its error is measured and shown), in the model.")
    ] = "float32",
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Run a corpus through a model and keep the activation of every prompt and generated token.

    An interrupted pass is resumed when the same command is given again. Several processes share a pass under
    torchrun.

    Options marked * may be given several times.
    """
    given = {name: value for name, value in locals().items() if name not in ("hook", "steer", "device", "as_json")}
    from lensae.core.device import use_device
    from lensae.stages.collect.run import CollectOptions, collect
    from lensae.views import collect as view
    from lensae.views.console import out
    from lensae.views.progress import Watch

    options = CollectOptions(hooks=tuple(hook or ()), steer=tuple(steer or ()), **given)
    with use_device(device), Watch() as watch:
        report = collect(options, command_line(), watch)
    if report is None:  # another process reports
        return
    if as_json:
        view.as_json(report)
    else:
        view.show(out(), report)
