"""`./distserve model`: models that come with the project."""

import typer

from cli.preflight import DEMO, find_model
from cli.up import MODELS, RANDOM_WEIGHTS

model = typer.Typer(no_args_is_help=True, help="Models that come with the project.")


@model.callback()
def _models() -> None:
    """Keeps `demo` a command of its own."""


@model.command()
def demo() -> None:
    """Make the demo model unless it is there, and print its folder."""
    typer.echo(RANDOM_WEIGHTS, err=True)
    typer.echo(find_model(DEMO, MODELS).folder)
