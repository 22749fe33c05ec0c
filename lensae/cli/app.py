"""The application, its commands, and the one place where errors are caught."""

from __future__ import annotations

import errno
import os
import sys
import time
from typing import Annotated

import typer
from typer.core import TyperGroup

from lensae.cli import (
    collect,
    corpus,
    doctor,
    evaluate,
    experiment,
    features,
    index,
    plugins,
    steer,
    store,
    survey,
    train,
)
from lensae.core.errors import LensaeError, OtherProcessEnded, UserError
from lensae.stages.shared.processes import current, leave

LAST_WORDS_S = 20.0  # that a process which has nothing to tell leaves to the one that has


class Interrupted(LensaeError):
    """Ctrl-C."""

    exit_status = 130


class Group(TyperGroup):
    """Turns Ctrl-C into an error that says what is kept."""

    def invoke(self, ctx):
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            kept = {
                "collect": "whole shards are kept; the same command goes on from there",
                "train": "checkpoint kept; the same command goes on from there",
                "experiment": "what is done is kept; the same command goes on from there",
            }
            raise Interrupted("stopped", str(interrupt) or kept.get(ctx.invoked_subcommand or "", "")) from None


READERS = plugins.listing("Readers: by the ending of a file, or READER:NAME", "corpus.readers")

app = typer.Typer(
    cls=Group,
    help="Open a language model up: collect activations, train sparse autoencoders, read and steer their features.",
    epilog="Start with: python main.py collect, then train, evaluate, index, features list, steer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from lensae import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Open a language model up: collect activations, train sparse autoencoders, read and steer their features."""
    if debug:
        os.environ["LENSAE_DEBUG"] = "1"


app.command("collect", epilog=collect.EXAMPLES, cls=READERS)(collect.command)
app.command("survey", epilog=survey.EXAMPLES, cls=READERS)(survey.command)
app.command("train", epilog=train.EXAMPLES, cls=plugins.listing("Architectures", "sae.architectures"))(train.command)
app.command("evaluate", epilog=evaluate.EXAMPLES)(evaluate.command)
app.command("index", epilog=index.EXAMPLES)(index.command)
app.add_typer(features.app, name="features")
app.command("steer", epilog=steer.EXAMPLES, cls=plugins.listing("Operations", "steering.operations"))(steer.command)
app.add_typer(corpus.app, name="corpus")
app.add_typer(store.app, name="store")
app.command("experiment", epilog=experiment.EXAMPLES)(experiment.command)
app.command("doctor", epilog=doctor.EXAMPLES)(doctor.command)


def main() -> None:
    """Run the command line; every error becomes a line or two on stderr and an exit status."""
    try:
        app()
    except SystemExit as end:
        if current().world_size > 1 and not end.code:
            leave()
        raise
    except LensaeError as error:
        if isinstance(error, OtherProcessEnded | UserError | Interrupted) and not current().is_first:
            _leave(error)
        _fail(error.what, error.hint, error.exit_status)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        _fail(*_explain(error), 1)
    except MemoryError:
        _fail("out of memory", "try a smaller --batch-size", 1)
    except Exception as error:
        _fail(f"unexpected {type(error).__name__}: {error}", "a fault in lensae: --debug shows where", 1)


def _leave(error: LensaeError) -> None:
    """End without a word: of several processes the first one tells (torchrun ends the others when one has ended)."""
    if os.environ.get("LENSAE_DEBUG"):
        raise error
    if not isinstance(error, Interrupted):  # which torchrun knows of
        time.sleep(LAST_WORDS_S)
    sys.exit(error.exit_status)


def _explain(error: OSError) -> tuple[str, str]:
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full{where}", "what was whole is kept; make room and run the same command again"
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return f"no permission to write{where}", "LENSAE_STORE names another folder for the store"
    return f"{error.strerror or error}{where}", ""


def _fail(what: str, hint: str, status: int) -> None:
    if os.environ.get("LENSAE_DEBUG"):
        raise
    from rich.text import Text

    from lensae.views.console import err

    console = err()
    console.print(Text.assemble(("error: ", "bold red"), what), soft_wrap=True)
    if hint:
        console.print(Text.assemble(("  ", ""), hint), style="dim", soft_wrap=True)
    sys.exit(status)
