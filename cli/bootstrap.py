"""Makes or renews .venv. Run by ./distserve with the system's Python, so it uses the standard library only.

python cli/bootstrap.py {runtime,development}
"""

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LEVELS = ("runtime", "development")


class CannotInstall(Exception):
    """The environment cannot be made; the text says why and what to do."""


def requirement_files(root: Path, level: str) -> list[Path]:
    """The files that decide what `level` installs, in the order that ./distserve hashes them."""
    files = [root / "cli" / "requirements.txt", *sorted(root.glob("services/*/requirements.txt"))]
    return [*files, root / "tests" / "requirements.txt"] if level == "development" else files


def fingerprint(root: Path, level: str) -> str:
    """The line that ./distserve compares: SHA-256 of constraints and requirements, and the real interpreter."""
    files = [root / "constraints.txt", *requirement_files(root, level)]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    return f"{digest} {os.path.realpath(root / '.venv' / 'bin' / 'python')}"


def pinned_version(constraints: str, package: str) -> str | None:
    """The version in a `package==version` line, or None without one."""
    for line in constraints.splitlines():
        name, separator, version = line.partition("==")
        if separator and name.strip() == package:
            return version.strip()
    return None


class Installation:
    """The virtual environment of one checkout. Use it with `locked` only."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / ".venv"
        self.python = self.folder / "bin" / "python"
        self.unfinished = self.folder / "unfinished"  # there while pip works: left behind, it tells of a half-made venv

    def is_current(self, level: str) -> bool:
        stamp = self.folder / f"{level}.stamp"
        return self.python.exists() and stamp.exists() and stamp.read_text().strip() == fingerprint(self.root, level)

    def bring_up_to_date(self, level: str) -> None:
        if self.unfinished.exists() or self._pip_version() is None:
            self._create()
        self.unfinished.touch()
        wanted_pip = pinned_version((self.root / "constraints.txt").read_text(), "pip")
        if wanted_pip not in (None, self._pip_version()):
            self._pip_install([f"pip=={wanted_pip}"])
        files = requirement_files(self.root, level)
        self._pip_install([argument for file in files for argument in ("-r", str(file))])
        self.unfinished.unlink()
        for included in LEVELS[: LEVELS.index(level) + 1]:
            (self.folder / f"{included}.stamp").write_text(fingerprint(self.root, included) + "\n")

    def _pip_version(self) -> str | None:
        """None if the venv is missing or broken (its interpreter was removed or replaced, or pip never got there)."""
        if not self.python.exists():
            return None
        ask = [self.python, "-c", "import pip; print(pip.__version__)"]
        answer = subprocess.run(ask, capture_output=True, text=True, check=False)
        return answer.stdout.strip() if answer.returncode == 0 else None

    def _create(self) -> None:
        if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
            version = f"{sys.version_info.major}.{sys.version_info.minor}"
            raise CannotInstall(
                f"this Python ({sys.executable}) has no venv or no pip of its own.\n"
                f"On Debian and Ubuntu: sudo apt install python{version}-venv"
            )
        print(f"Making {self.folder} with Python {sys.version.split()[0]} (first start only)", flush=True)
        self._explain_download_size()
        shutil.rmtree(self.folder, ignore_errors=True)
        command = [sys.executable, "-m", "venv", self.folder]
        making = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)  # silent when Ctrl-C ends it
        if making.returncode != 0:
            raise CannotInstall(f"`{sys.executable} -m venv` failed: {making.stderr.strip()}")

    def _explain_download_size(self) -> None:
        if not Path("/proc/driver/nvidia").exists() and not any(name.startswith("PIP_") for name in os.environ):
            print(
                "PyPI's torch brings some GB of CUDA libraries. Without an NVIDIA GPU this is smaller:\n"
                "  PIP_EXTRA_INDEX_URL=INDEX_OF_CPU_BUILDS ./distserve ...   (pytorch.org, Get started, names it)",
                flush=True,
            )

    def _pip_install(self, what: list[str]) -> None:
        constraints = self.root / "constraints.txt"
        command = [self.python, "-m", "pip", "--disable-pip-version-check", "install", "-c", constraints, *what]
        # What pip builds from source is built with pinned tools too; as a variable, because an older pip ignores it.
        # pip splits it at spaces, which the checkout's path may have: so relative.
        environment = os.environ | {"PIP_BUILD_CONSTRAINT": constraints.name}
        status = subprocess.run(command, env=environment, cwd=self.root, check=False).returncode
        if status != 0:
            self.unfinished.unlink()  # pip undoes what it could not finish
            raise CannotInstall(f"pip ended with status {status}; its message is above. The next start tries again")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Only one process at a time; the kernel frees the lock of a process that dies."""
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another start is working on .venv: waiting for it", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> int:
    level = sys.argv[1]
    installation = Installation(Path(__file__).resolve().parents[1])
    try:
        with locked(installation.root / ".distserve" / "bootstrap.lock"):
            if not installation.is_current(level):
                installation.bring_up_to_date(level)
    except (CannotInstall, OSError) as error:
        print(f"Cannot make .venv: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
