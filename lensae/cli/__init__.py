"""The command line: parse, call one stage or query, show it with one view. Nothing heavy is imported here."""

from lensae.cli.app import main

__all__ = ["main"]
