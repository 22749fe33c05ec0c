"""doctor"""

from __future__ import annotations

import typer

from lensae.cli.help import examples
from lensae.cli.options import JsonOption

EXAMPLES = examples("doctor", "doctor --json")


def command(as_json: JsonOption = False) -> None:
    """Check versions, device, threads, cache, the embedded model and disk (exit status 1 when something is missing)."""
    from lensae.stages.doctor import examine
    from lensae.views.console import out, print_json

    facts = examine()
    if as_json:
        print_json([vars(fact) for fact in facts])
    else:
        for fact in facts:
            mark = "[green]ok[/] " if fact.good else "[red]bad[/]"
            out().print(f"{mark} [dim]{fact.name:<16}[/] {fact.value}", soft_wrap=True)
    if not all(fact.good for fact in facts):
        raise typer.Exit(1)
