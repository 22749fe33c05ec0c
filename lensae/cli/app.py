"""The application, its commands, and the one place where errors are caught."""

from __future__ import annotations

import errno
import io
import os
import sys
import time
from types import ModuleType
from typing import Annotated, Any

import typer

from lensae.cli import collect, corpus, doctor, evaluate, experiment, features, index, steer, store, survey, train
from lensae.cli import help as layout
from lensae.cli.help import App, Command, examples
from lensae.cli.plugins import listing
from lensae.core.errors import LensaeError, OtherProcessEnded, UserError
from lensae.core.program import command
from lensae.stages.shared.processes import current, leave

GRACE_S = 20.0  # a process that reports nothing waits so long for the one that reports the error
SUMMARY = "Open a language model up: collect activations, train sparse autoencoders, read and steer their features."
COMMANDS: dict[str, dict[str, ModuleType]] = {  # by panel of the help, in the order of the work
    "Collect and train": {"survey": survey, "collect": collect, "train": train},
    "Understand": {"features": features, "evaluate": evaluate, "index": index},
    "Steer and test": {"steer": steer, "experiment": experiment},
    "Look after": {"store": store, "corpus": corpus, "doctor": doctor},
}
KEPT = {  # what Ctrl-C leaves behind, by command
    "collect": "whole shards are kept; run the same command again to resume",
    "train": "the last checkpoint is kept; run the same command again to resume",
    "index": "finished segments are kept; run the same command again to resume",
    "experiment": "finished stages are kept; run the same command again to resume",
}


class Interrupted(LensaeError):
    """Ctrl-C."""

    exit_status = 130


class Group(layout.Group):
    """The commands in the order of the work; turns Ctrl-C into an error that says what is kept."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names in the order of COMMANDS."""
        return [name for modules in COMMANDS.values() for name in modules]

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            raise Interrupted("stopped", str(interrupt) or KEPT.get(ctx.invoked_subcommand or "", "")) from None


app = App(
    cls=Group,
    help=SUMMARY,
    epilog=examples("collect", "train", "features list --sort label", "steer --feature 447 --scale 8"),
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
    """Set what holds for every command."""
    if debug:
        os.environ["LENSAE_DEBUG"] = "1"


for _panel, _modules in COMMANDS.items():
    for _name, _module in _modules.items():
        if hasattr(_module, "app"):
            app.add_typer(_module.app, name=_name, rich_help_panel=_panel)
        else:
            _kind = listing(*_module.PLUGINS) if hasattr(_module, "PLUGINS") else Command
            app.command(_name, epilog=_module.EXAMPLES, rich_help_panel=_panel, cls=_kind)(_module.command)


def main() -> None:
    """Run the command line; every error becomes a line or two on stderr and an exit status."""
    _write_utf8()
    try:
        app(prog_name=command())
    except SystemExit as end:
        if current().world_size > 1 and not end.code:
            leave()
        raise
    except LensaeError as error:
        if isinstance(error, OtherProcessEnded | UserError | Interrupted) and not current().is_first:
            _leave(error)
        _fail(error.what, error.hint, error.exit_status)
    except OSError as error:
        if _is_closed_pipe(error):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        _fail(*_explain(error), 1)
    except MemoryError:
        _fail("out of memory", "try a smaller --batch-size", 1)
    except Exception as error:
        _fail(f"unexpected {type(error).__name__}: {error}", "this is a bug in lensae; --debug shows where", 1)


def _write_utf8() -> None:
    """Write UTF-8 to pipes and files on Windows too, whose own code page lacks most characters."""
    for stream in (sys.stdout, sys.stderr) if os.name == "nt" else ():
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8")


def _is_closed_pipe(error: OSError) -> bool:
    """Whether the reader of the output has gone (`| head`); Windows reports that as an invalid argument."""
    windows = os.name == "nt" and error.errno == errno.EINVAL and error.filename is None
    return isinstance(error, BrokenPipeError) or windows


def _leave(error: LensaeError) -> None:
    """End without a message: the first process reports. torchrun ends all processes when one has ended."""
    if os.environ.get("LENSAE_DEBUG"):
        raise error
    if not isinstance(error, Interrupted):  # torchrun passes Ctrl-C on to all processes
        time.sleep(GRACE_S)
    sys.exit(error.exit_status)


def _explain(error: OSError) -> tuple[str, str]:
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full{where}", "complete files are kept; make room and run the same command again"
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
