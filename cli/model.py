"""`./distserve model`: the demo model, and models from the Hugging Face hub."""

from typing import Annotated

import typer

from cli.preflight import DEMO, find_model
from cli.up import MODELS, RANDOM_WEIGHTS

model = typer.Typer(no_args_is_help=True, help="Models to serve.")


@model.command()
def demo() -> None:
    """Make the demo model unless it is there, and print its folder."""
    typer.echo(RANDOM_WEIGHTS, err=True)
    typer.echo(find_model(DEMO, MODELS).folder)


@model.command()
def get(
    wanted: Annotated[str, typer.Argument(metavar="MODEL", help="`demo`, a hub id (owner/name) or a folder.")],
) -> None:
    """Make the demo model, or download another one, unless it is there; check it, and print its folder."""
    typer.echo(find_model(wanted, MODELS).folder)
