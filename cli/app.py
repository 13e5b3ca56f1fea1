"""The commands a person types."""

import sys

import typer

from cli.bench.command import bench
from cli.chaos.command import chaos
from cli.chat import chat
from cli.doctor.command import doctor
from cli.keys import keys
from cli.model import model
from cli.plan import plan
from cli.problems import Problem
from cli.profile import profile
from cli.quality import run_checks, run_tests
from cli.simulate import goodput, simulate
from cli.trace import trace
from cli.up import up

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="DistServe: prefill and decoding of large language models on separate instances.",
)
app.command()(up)
app.command()(chat)
app.command()(simulate)
app.command()(goodput)
app.command()(plan)
app.command()(profile)
app.command()(trace)
app.command()(keys)
app.command()(doctor)
app.command()(chaos)
app.add_typer(model, name="model")
app.add_typer(bench, name="bench")
app.command("test", context_settings={"ignore_unknown_options": True})(run_tests)
app.command("check")(run_checks)


def main() -> None:
    try:
        app(prog_name="./distserve")
    except Problem as problem:
        sys.exit(f"distserve: {problem}")
