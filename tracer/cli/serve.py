"""``fxplain serve``: a page on this machine to ask a model and to look."""

from __future__ import annotations

import typer

from fxplain.cli.options import Ask


def run_serve(ask: Ask, port: int) -> None:
    """Load the model, tell the address, and serve until interrupted."""
    from fxplain.explainer.explainer import Explainer
    from fxplain.serve.app import library, serve

    library()  # before the model is loaded
    explainer = Explainer(ask.load())

    def tell(address: str) -> None:
        typer.echo(f"{explainer.loaded.name}: {address}")
        typer.echo("the address holds a secret: who has it can ask the model; Ctrl+C ends it", err=True)

    serve(explainer, port, tell)
