"""What is typed wrong is said in a line, before anything is sent."""

import pytest
from typer.testing import CliRunner

from cli.app import app
from cli.problems import Problem


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--rates", "1,x"], "wanted numbers"),
        (["--rates", "1,2", "--search"], "leave out --rate and --search"),
        (["--rate", "0"], "must be more than 0"),
        (["--requests", "5", "--duration", "5"], "exclude each other"),
        (["--workload", "odes"], "no workload"),
        (["--slo-ttft", "0"], "must be positive"),
        (["compare", "/nowhere/a.json", "/nowhere/b.json"], "No such file"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(arguments: list[str], complaint: str):
    with pytest.raises(Problem, match=complaint):
        CliRunner().invoke(app, ["bench", *arguments], catch_exceptions=False)
