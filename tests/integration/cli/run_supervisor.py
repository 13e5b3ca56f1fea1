"""A process that supervises fake services, for tests to signal: run_supervisor.py FOLDER DRAIN_SECONDS."""

import asyncio
import sys
from pathlib import Path

from rich.console import Console

from cli.held_ports import hold_port, number_of
from cli.problems import Problem
from cli.run_folder import RunFolder
from cli.screen import Screen
from cli.stack import Stack
from cli.supervisor import Supervisor


def main() -> None:
    root, drain_seconds = Path(sys.argv[1]), float(sys.argv[2])
    held = hold_port("127.0.0.1", 0)
    stack = Stack(
        model="none",
        served_name="fake",
        prefill=1,
        decode=1,
        colocated=False,
        host="127.0.0.1",
        port=number_of(held),
        device="cpu",
        dtype="auto",
        drain_seconds=drain_seconds,
    )
    folder = RunFolder.create(root / "run")
    screen = Screen(Console(width=200))
    try:
        clean = asyncio.run(Supervisor(stack, root=root, folder=folder, screen=screen, gpus=[], chats=True).run())
    except Problem as problem:
        sys.exit(f"problem: {problem}")
    finally:
        folder.close()
    sys.exit(0 if clean else 1)


if __name__ == "__main__":
    main()
