"""Commands whose help lists plug-ins, which are looked for only when the help is asked for."""

from __future__ import annotations

from rich.markup import escape
from typer.core import TyperCommand

from lensae.core import registry


def listing(title: str, package: str) -> type[TyperCommand]:
    """A kind of command whose help ends with the plug-ins of `package`, a line for each, below `title`."""

    class CommandWithPlugins(TyperCommand):
        def format_help(self, ctx, formatter) -> None:
            """The help of the command, with the plug-ins before its examples."""
            lines = [f"[bold]{title}[/]", *_described(package)]
            examples, self.epilog = self.epilog, "\n\n".join([*lines, " ", self.epilog or ""])
            super().format_help(ctx, formatter)
            self.epilog = examples

    return CommandWithPlugins


def _described(package: str) -> list[str]:
    """The name of every plug-in with its own words about itself."""
    names = registry.names(package)
    width = max(map(len, names))
    return [f"[cyan]{name:<{width}}[/]  {escape(registry.summary(package, name))}" for name in names]
