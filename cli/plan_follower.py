"""Brings the instances of a running stack to the layout of the latest plan, one step after the other."""

from collections.abc import Sequence
from typing import Protocol

from rich.markup import escape

from cli.changeover import Engine, Start, changeover
from cli.problems import Problem
from cli.screen import Screen
from shared.bus.interface import BusError
from shared.bus.key_value import KeyValue
from shared.messages.codec import MalformedMessage
from shared.messages.plans import Plan


class Engines(Protocol):
    """The instances with an engine that a supervisor keeps."""

    def running(self) -> Sequence[Engine]: ...

    async def add(self, engine: Engine) -> None:
        """Start it and wait until it is ready. Problem if it is not in time; then it is gone again."""
        ...

    async def remove(self, engine: Engine) -> None:
        """Let it drain, and wait until it is gone."""
        ...


class PlanFollower:
    def __init__(self, engines: Engines, gpus: Sequence[str], screen: Screen, *, only_tells: bool = False) -> None:
        """`only_tells`: show the plans and change nothing."""
        self._engines, self._gpus, self._screen, self._only_tells = engines, gpus, screen, only_tells
        self._revision = 0  # of the last one; a watch may say it again

    async def run(self, plans: KeyValue[Plan]) -> None:
        """For ever. Of several plans in a row the latest counts."""
        try:
            async for entry in plans.watch(Plan.KEY):
                if entry is not None and entry.revision > self._revision:
                    self._revision = entry.revision
                    await self._follow(entry.value)
        except (BusError, MalformedMessage) as error:
            self._screen.say(f"[yellow]Plans are not followed any more: {escape(str(error))}[/yellow]")

    async def _follow(self, plan: Plan) -> None:
        layout = f"{plan.prefill} prefill, {plan.decode} decode"
        self._screen.say(f"[bold]Plan {plan.epoch}: {layout}[/bold]")
        for reason in plan.reasons:
            self._screen.say(f"  [dim]{escape(reason)}[/dim]")
        running = self._engines.running()
        if self._only_tells:
            self._screen.say("[dim]  up --replan would follow it[/dim]")
            return
        if len(running) != plan.prefill + plan.decode:
            self._screen.say(
                f"[yellow]Plan {plan.epoch} is not for the {len(running)} instances that there are[/yellow]"
            )
            return
        steps = changeover(running, plan.prefill, plan.decode, self._gpus)
        try:
            for step in steps:
                await (self._engines.add if isinstance(step, Start) else self._engines.remove)(step.engine)
        except Problem as problem:
            self._screen.say(f"[yellow]Plan {plan.epoch} is not followed further: {escape(str(problem))}[/yellow]")
        else:
            self._screen.say(f"[green]Plan {plan.epoch} holds[/green]: {layout}")
