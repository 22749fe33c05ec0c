"""store list, info, verify"""

from __future__ import annotations

from typing import Annotated

import typer

from lensae.cli.options import JsonOption, examples

app = typer.Typer(no_args_is_help=True, help="Activation sets on disk.")
NameArgument = Annotated[str | None, typer.Argument(help="A set, as in `store list`. Default: the one finished last.")]


@app.command("list", epilog=examples("store list", "store list --json"))
def list_(as_json: JsonOption = False) -> None:
    """List activation sets and their SAEs."""
    from lensae.paths import store_root
    from lensae.stages import store
    from lensae.views import store as view
    from lensae.views.console import out, print_json

    found = store.rows()
    if as_json:
        print_json(found)
    elif found:
        view.set_list(out(), found)
    else:
        out().print(f"nothing in {store_root()}/ yet; start with: python main.py collect")


@app.command("info", epilog=examples("store info", "store info smollm2-135m/blocks.15.hook_resid_post"))
def info(name: NameArgument = None, as_json: JsonOption = False) -> None:
    """Show all there is on one set: model, versions, passes."""
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
    """Read every byte of a set and name each fault by shard, dataset and chunk (exit status 1 when there is one)."""
    from dataclasses import asdict

    from lensae.stages import store
    from lensae.store import verify as check
    from lensae.views import store as view
    from lensae.views.console import current, out, print_json
    from lensae.views.progress import Watch

    entry = store.any_set(name)
    faults = []
    with Watch() as watch:
        watch.start("verifying", len(entry.manifest["shards"]), "shards")
        for _file, found in check.verify(entry):
            faults += found
            watch.advance(1)
    if as_json:
        print_json({"set": entry.name, "faults": [asdict(fault) for fault in faults]})
    else:
        current(entry.name)
        view.faults(out(), faults, len(entry.manifest["shards"]))
    if faults:
        raise typer.Exit(1)
