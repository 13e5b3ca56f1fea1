import re
from pathlib import Path

import pytest

from cli.bootstrap import CannotInstall, Installation, pinned_version, requirement_files

ROOT = Path(__file__).resolve().parents[3]


def package(line: str) -> str:
    return re.split(r"[\[=<>~! ]", line)[0]


def test_the_pinned_version_of_a_package_is_found():
    constraints = "# pip==1\npip-tools==7\npip==26.3\n"
    assert pinned_version(constraints, "pip") == "26.3"
    assert pinned_version(constraints, "torch") is None


def test_the_tests_requirements_are_installed_for_development_only():
    runtime, development = requirement_files(ROOT, "runtime"), requirement_files(ROOT, "development")
    assert ROOT / "tests" / "requirements.txt" not in runtime
    assert development == [*runtime, ROOT / "tests" / "requirements.txt"]
    assert {file.parent.name for file in runtime} == {"cli", "gateway", "scheduler", "prefill", "decode"}


def test_every_required_package_is_pinned_in_constraints_and_nowhere_else():
    pins = (ROOT / "constraints.txt").read_text()
    for file in requirement_files(ROOT, "development"):
        for line in file.read_text().splitlines():
            if line and not line.startswith("#"):
                assert "=" not in line, f"{file}: {line}"
                assert pinned_version(pins, package(line)), f"{file}: {line} is not pinned"


@pytest.mark.parametrize("module", ["venv", "ensurepip"])
def test_a_python_without_venv_or_pip_is_told_which_package_to_install(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == module else object())
    with pytest.raises(CannotInstall, match=r"sudo apt install python3\.\d+-venv"):
        Installation(tmp_path).bring_up_to_date("runtime")


def test_pip_finds_the_pins_for_what_it_builds_though_the_checkouts_path_has_spaces(tmp_path: Path):
    root = tmp_path / "a new checkout"
    for folder in (root / "cli", root / ".venv" / "bin"):
        folder.mkdir(parents=True)
    (root / "constraints.txt").write_text("setuptools==1\n")
    (root / "cli" / "requirements.txt").touch()
    python = root / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\nif [ "$1" = -c ]; then echo 26.3; else cat $PIP_BUILD_CONSTRAINT > pins; fi\n')
    python.chmod(0o755)
    Installation(root).bring_up_to_date("runtime")
    assert (root / "pins").read_text() == "setuptools==1\n"
