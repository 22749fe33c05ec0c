"""Help that lists plug-ins, which are looked for only when it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lensae.cli.help import Command

if TYPE_CHECKING:
    from rich.panel import Panel


def listing(title: str, package: str) -> type[Command]:
    """A kind of command whose help ends with a panel of the plug-ins of `package`, a line for each."""

    class CommandWithPlugins(Command):
        """A command with such help."""

        def format_help(self, ctx: Any, formatter: Any) -> None:
            """The help of any command, and the panel."""
            from rich.console import Console

            super().format_help(ctx, formatter)
            Console(highlight=False).print(_panel(title, package))

    return CommandWithPlugins


def _panel(title: str, package: str) -> Panel:
    """The name of every plug-in and the first sentence of its documentation, as Typer lists commands."""
    from rich import box
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text
    from typer.rich_utils import STYLE_COMMANDS_PANEL_BORDER, STYLE_COMMANDS_TABLE_FIRST_COLUMN

    from lensae.core import registry

    table = Table(box=None, show_header=False, padding=(0, 1), expand=True)
    table.add_column(style=STYLE_COMMANDS_TABLE_FIRST_COLUMN, no_wrap=True)
    table.add_column(ratio=1)
    for name in registry.names(package):
        table.add_row(name, Text(registry.summary(package, name)))
    return Panel(table, title=title, title_align="left", border_style=STYLE_COMMANDS_PANEL_BORDER, box=box.ROUNDED)
