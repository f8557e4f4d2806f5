"""The command line, one file a command."""

from fxplain.cli.commands import app, main

__all__ = ["app", "main"]
