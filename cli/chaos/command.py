"""`./distserve chaos`: faults of every kind against a stack under load, and each token held against the right one."""

import asyncio
import json
import random
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cli import out_file
from cli.chaos.calls import calls
from cli.chaos.faults import Faults
from cli.chaos.leftovers import grown, settled, stranded_blocks
from cli.chaos.load import Load
from cli.chaos.outages import judge
from cli.chaos.report import Report
from cli.chaos.schedule import Fault, schedule
from cli.chaos.stack import TormentedStack
from cli.chaos.tally import tally
from cli.held_ports import hold_port, number_of
from cli.preflight import DEMO, find_model
from cli.problems import Problem
from cli.run_folder import RunFolder
from cli.screen import Screen
from cli.stack import Stack
from cli.up import MODELS, ROOT, STATE, log_to

HOST = "127.0.0.1"
STREAMS = 32
LEARNERS = 8  # streams at once while nothing is wrong yet
KV_BLOCKS = 448  # per instance: too few for all streams at one decode instance, when the other is gone
DRAIN_SECONDS = 240.0  # more than any answer takes: what a gateway has begun only it can end
WIDTH = 120

Minutes = Annotated[float, typer.Option(min=0.25, metavar="M", help="How long to torment it.")]
Seed = Annotated[int | None, typer.Option(metavar="S", help="Of the sequence of faults.", show_default="any")]
Out = Annotated[Path | None, typer.Option(metavar="FILE", help="Write the result there too, as JSON.")]


def chaos(minutes: Minutes = 2.0, seed: Seed = None, out: Out = None) -> None:
    """Break every part of a stack of its own under load, again and again; fail if a client could have noticed more
    than a pause.

    The same seed makes the same faults at the same times.
    """
    if out is not None:
        out_file.make_way(out)
    chosen = random.randrange(1 << 31) if seed is None else seed
    console = Console(width=WIDTH)
    folder = RunFolder.create(STATE / "run")
    try:
        report = asyncio.run(_torment(chosen, 60 * minutes, folder, console))
    finally:
        folder.close()
    if out is not None:
        out_file.write(out, json.dumps(report.json(), indent=1) + "\n")
    console.print(report.table())
    for line in report.lines():
        console.print(line, highlight=False)
    for violation in report.violations:
        console.print(f"[red]✗[/red] {violation}", highlight=False)
    if report.violations:
        console.print(
            f"./distserve chaos --seed {chosen} --minutes {minutes:g} does the same again; logs: {folder.logs}"
        )
        sys.exit(1)
    console.print("[green]Every stream was whole.[/green]")


async def _torment(seed: int, seconds: float, folder: RunFolder, console: Console) -> Report:
    model = find_model(DEMO, MODELS)
    held = hold_port(HOST, 0)
    stack = Stack(
        model=str(model.folder),
        served_name=model.name,
        prefill=2,
        decode=2,
        schedulers=2,
        colocated=False,
        host=HOST,
        port=number_of(held),
        device="cpu",
        dtype="float32",
        drain_seconds=DRAIN_SECONDS,
        kv_blocks=KV_BLOCKS,
    )
    console.print(f"Starting 2 prefill, 2 decode, 2 schedulers, 2 gateways; seed {seed}")
    logs = folder.logs
    with held, (logs / "supervisor.log").open("w") as log, (logs / "screen.log").open("w") as shown:
        log_to(log)
        screen = Screen(Console(file=shown, width=WIDTH))
        tormented = TormentedStack(stack, root=ROOT, folder=folder, screen=screen, gpus=[], chats=model.chats)
        running = asyncio.create_task(tormented.run())
        trial = asyncio.create_task(_trial(tormented, stack, seed, seconds, console))
        try:
            await asyncio.wait({running, trial}, return_when=asyncio.FIRST_COMPLETED)
            if not trial.done():
                trial.cancel()
                with suppress(asyncio.CancelledError):
                    await trial
                await running
                raise Problem("stopped before its end")
            tormented.stop()
            await running
        finally:
            await tormented.close()
        return trial.result()


async def _trial(tormented: TormentedStack, stack: Stack, seed: int, seconds: float, console: Console) -> Report:
    await tormented.served.wait()
    gateways = {"gateway": stack.url, "gateway 2": f"http://{HOST}:{tormented.second_port}"}
    load = Load(gateways, calls(stack.served_name), STREAMS)
    violations = [f"without any fault: {wrong}" for wrong in await load.learn(LEARNERS)]
    violations += await settled(tormented)
    before = tormented.memory()
    console.print(f"{len(calls(stack.served_name))} answers known; {STREAMS} streams from now on")
    planned = schedule(seed, seconds)
    loading = asyncio.create_task(load.run(seconds))
    faults = Faults(tormented, load, DRAIN_SECONDS)
    try:
        befell = await _inject(planned, faults, load, console)
        await loading
    finally:
        loading.cancel()
        faults.close()
    troubles = sorted((one for story in load.stories for one in story.troubles), key=lambda one: one.at)
    judge(troubles, faults.outages, tormented.parts_of_roles())
    violations += [one.told() for one in troubles if one.cause is None]
    violations += [f"{story.ended_at:.1f} s: {story.wrong}" for story in load.stories if story.wrong]
    violations += await settled(tormented)
    after = tormented.memory()
    violations += grown(before, after)
    stranded = stranded_blocks(tormented)
    return Report(
        seed=seed,
        seconds=seconds,
        streams=STREAMS,
        answers=sum(not story.left and not story.wrong for story in load.stories),
        tokens=sum(len(story.tokens_at) for story in load.stories),
        faults=list(zip(planned, befell, strict=True)),
        rows=tally(planned, load.stories),
        troubles=troubles,
        longest_silence_seconds=max((story.longest_silence for story in load.stories), default=0.0),
        stranded_blocks=stranded,
        memory={name: (before[name][1], size) for name, (_, size) in after.items() if name in before},
        violations=violations,
    )


async def _inject(planned: list[Fault], faults: Faults, load: Load, console: Console) -> list[str]:
    """Each at its time, whatever has become of the one before; what they befell."""

    async def one(fault: Fault) -> str:
        await asyncio.sleep(max(0.0, fault.at - load.now))
        befell = await faults.happen(fault)
        lasted = f" for {fault.seconds:g} s" if fault.seconds else ""
        console.print(f"{fault.at:6.1f} s  {fault.kind}: {befell}{lasted}", highlight=False)
        return befell

    return list(await asyncio.gather(*(one(fault) for fault in planned)))
