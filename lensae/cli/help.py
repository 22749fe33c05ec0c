"""How help pages are laid out: panels of options, short names of types, paragraphs and examples."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from lensae.core.program import command

RUN = "How to run"


class Layout:
    """What commands and groups share: paragraphs are one line each, and options stand in panels.

    Where some options name a panel (see `panel`), all others, `--help` among them, stand in a last one.
    """

    def __init__(self, *args: Any, help: str | None = None, **kwargs: Any):
        super().__init__(*args, help=paragraphs(help or ""), **kwargs)  # type: ignore[call-arg]

    def get_params(self, ctx: Any) -> list:
        """The parameters, in the order of their panels."""
        params = super().get_params(ctx)  # type: ignore[misc]
        options = [param for param in params if isinstance(param, TyperOption)]
        for option in options:
            option.metavar = short_type(option, ctx) if option.metavar is None else option.metavar
        if any(option.rich_help_panel for option in options):
            for option in options:
                option.rich_help_panel = option.rich_help_panel or RUN
        return sorted(params, key=lambda param: getattr(param, "rich_help_panel", None) == RUN)


class Command(Layout, TyperCommand):
    """A command with this layout."""


class Group(Layout, TyperGroup):
    """A group of commands with this layout."""


class App(typer.Typer):
    """A Typer application whose commands and groups have this layout."""

    def __init__(self, **options: Any):
        super().__init__(**{"cls": Group, **options})

    def command(self, name: str | None = None, **options: Any) -> Callable:
        """Register a command, as in Typer."""
        return super().command(name, **{"cls": Command, **options})


def panel(title: str) -> Callable[..., Any]:
    """A maker of the options of one panel: `option(help, *flags)`."""
    return lambda help, *flags: typer.Option(*flags, help=help, rich_help_panel=title)


def examples(*lines: str, parallel: str = "") -> str:
    """An epilog that shows commands, one a line; `parallel` is one for several processes."""
    commands = [command(line) for line in lines] + ([command(parallel, process_count=2)] if parallel else [])
    return "\n".join(["[bold]Examples[/]", *(f"[cyan]{line}[/]" for line in commands)])


def paragraphs(text: str) -> str:
    """The text of a docstring with each paragraph on one line."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def short_type(option: TyperOption, ctx: Any) -> str:
    """The type of an option's value for its help: "" for a flag, else "int", "float", "text" or "path"."""
    if option.is_flag:
        return ""
    return re.sub(r"list\[|[<>\]]", "", option.display_type(ctx)).replace("str", "text")
