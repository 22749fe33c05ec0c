"""store list, info, verify, repair, view, export, remove"""

from __future__ import annotations

from typing import Annotated

import typer

from lensae.cli.help import App, examples
from lensae.cli.options import JsonOption
from lensae.core.program import command

app = App(no_args_is_help=True, help="Activation sets on disk.")
NameArgument = Annotated[str | None, typer.Argument(help="A set, as in `store list`. Default: the one finished last.")]


@app.command("list", epilog=examples("store list", "store list --json"))
def list_(as_json: JsonOption = False) -> None:
    """List activation sets and their SAEs."""
    from lensae.core.paths import store_root
    from lensae.stages import store
    from lensae.views import store as view
    from lensae.views.console import out, print_json

    sets = store.rows()
    if as_json:
        print_json(sets)
    elif sets:
        view.set_list(out(), sets)
    else:
        out().print(f"nothing in {store_root()}/ yet; start with: {command('collect')}")


@app.command("info", epilog=examples("store info", "store info smollm2-135m/blocks.15.hook_resid_post"))
def info(name: NameArgument = None, as_json: JsonOption = False) -> None:
    """Show everything recorded of one set: model, versions, passes."""
    from lensae.stages import store
    from lensae.views import store as view
    from lensae.views.console import out, print_json

    details = store.info(name)
    if as_json:
        print_json(details)
    else:
        view.info(out(), details)


@app.command("verify", epilog=examples("store verify"))
def verify(name: NameArgument = None, as_json: JsonOption = False) -> None:
    """Read every byte of a set, its SAEs and their indexes, and name each fault (exit status 1 when there is one)."""
    from dataclasses import asdict

    from lensae.stages import store
    from lensae.views import store as view
    from lensae.views.console import current, out, print_json
    from lensae.views.progress import Watch

    with Watch() as watch:
        report = store.verify(name, watch)
    if as_json:
        values = asdict(report)
        print_json({"set": values.pop("set_name"), **values})
    else:
        current(report.set_name)
        view.verified(out(), report)
    if report.faults:
        raise typer.Exit(1)


@app.command("repair", epilog=examples("store repair"))
def repair(name: NameArgument = None, as_json: JsonOption = False) -> None:
    """Set damaged shards aside (as .bad files) and collect exactly their documents again."""
    from dataclasses import asdict

    from lensae.stages import store
    from lensae.stages.collect.repair import repair as repair_set
    from lensae.views import store as view
    from lensae.views.console import current, out, print_json
    from lensae.views.progress import Watch

    entry = store.any_set(name)
    with Watch() as watch:
        done = repair_set(entry, watch)
    if as_json:
        print_json({"set": entry.name, "repaired": [asdict(shard) for shard in done]})
        return
    current(entry.name)
    view.repaired(out(), done, len(entry.manifest.shards))


@app.command("view", epilog=examples("store view", "store view smollm2-135m/blocks.15.hook_resid_post"))
def view_(name: NameArgument = None, as_json: JsonOption = False) -> None:
    """Write view.h5 to the set's folder: one HDF5 file that shows all shards as single arrays, without copying them."""
    from lensae.stages import store
    from lensae.views import store as view
    from lensae.views.console import current, out, print_json

    report = store.view(name)
    if as_json:
        print_json(report)
        return
    current(report["set"])
    view.viewed(out(), report)


@app.command(
    "export",
    epilog=examples("store export --to set.npz", "store export --to set.safetensors", "store export gpt2 --to set/"),
)
def export(
    to: Annotated[
        str, typer.Option(help="A .npz or .safetensors file, or a folder for a Hugging Face dataset.", metavar="PATH")
    ],
    name: NameArgument = None,
    as_json: JsonOption = False,
) -> None:
    """Write a set for other tools: activations, tokens and texts in NumPy's, safetensors' or datasets' own format."""
    from lensae.stages import store
    from lensae.views import store as view
    from lensae.views.console import current, out, print_json
    from lensae.views.progress import Watch

    with Watch() as watch:
        report = store.export(name, to, watch)
    if as_json:
        print_json(report)
        return
    current(report["set"])
    view.exported(out(), report)


@app.command("remove", epilog=examples("store remove gpt2/blocks.6.hook_resid_post", "store remove gpt2 --yes"))
def remove(
    name: Annotated[str, typer.Argument(help="A set, as in `store list`; an unfinished or damaged one as well.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete a set and its SAEs, after showing what would be lost (exit status 1 when the answer is no)."""
    from lensae.stages import store
    from lensae.views.console import out, print_json

    report = store.remove(name, lambda contents: _confirm(contents, yes))
    if as_json:
        print_json(report)
    else:
        out().print(f"{'removed' if report['removed'] else 'kept'} {report['path']}", markup=False, soft_wrap=True)
    if not report["removed"]:
        raise typer.Exit(1)


def _confirm(contents: dict, yes: bool) -> bool:
    """Show what would be lost and ask, unless the answer was given with the command."""
    import sys

    from lensae.core.errors import UserError
    from lensae.views import store as view
    from lensae.views.console import err

    view.to_be_removed(err(), contents)
    if yes:
        return True
    if not sys.stdin.isatty():
        raise UserError("there is no terminal to ask on", "give --yes to remove it without a question")
    return typer.confirm("remove it for good?", err=True)
