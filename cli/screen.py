"""What `up` prints: one line per fact, in the order of events."""

import json
import shlex
import signal
import time
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from cli.readiness import BecameReady, LinkTested, Notice, NotReady, Silent
from cli.restarts import GiveUp, RestartAfter
from cli.stack import Stack

NAME_WIDTH = 11


class Screen:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._started_at = time.monotonic()

    def say(self, line: str) -> None:
        """`line` may hold rich markup."""
        try:
            self._console.print(line, highlight=False, soft_wrap=True)
        except (OSError, SystemExit):  # rich's answer to a closed pipe; but stopping the parts in order matters more
            self._console.quiet = True

    def starting(self, stack: Stack, note: str) -> None:
        engines = f"{stack.decode} colocated" if stack.colocated else f"{stack.prefill} prefill, {stack.decode} decode"
        self.say(f"Starting [bold]{escape(stack.served_name)}[/bold] on {stack.device}: {engines}")
        if note:
            self.say(f"[yellow]{escape(note)}[/yellow]")

    def part_ready(self, name: str, detail: str = "") -> None:
        seconds = time.monotonic() - self._started_at
        self.say(f"  [green]✓[/green] {name:<{NAME_WIDTH}}{seconds:6.1f} s  [dim]{escape(detail)}[/dim]")

    def notice(self, notice: Notice) -> None:
        match notice:
            case BecameReady(role, instance, count, wanted):
                self.part_ready(role if wanted == 1 else f"{role} {count}/{wanted}", instance)
            case NotReady(instance, reason):
                self.say(f"  [red]✗[/red] {instance} takes no work: {escape(reason)}")
            case Silent(instance):
                self.say(f"  [red]✗[/red] {instance} is gone: no sign of life any more")
            case LinkTested(instance, link) if link.ok:
                speed = f"{link.transport}, {link.gigabytes_per_second:.1f} GB/s"
                slow = f"  [yellow]{escape(link.detail)}[/yellow]" if link.detail else ""
                self.say(f"    KV from {link.peer} to {instance}: {speed}{slow}")
            case LinkTested(instance, link):
                self.say(f"  [red]✗[/red] KV from {link.peer} to {instance} fails: {escape(link.detail)}")

    def still_missing(self, what: str) -> None:
        self.say(f"  [dim]{time.monotonic() - self._started_at:.0f} s: still waiting for {what}[/dim]")

    def died(
        self,
        name: str,
        status: int,
        ran_seconds: float,
        decision: RestartAfter | GiveUp,
        last_lines: list[str],
        log: Path,
    ) -> None:
        self.say(f"[red]{name} ended by itself after {ran_seconds:.1f} s ({_describe(status)})[/red]; its last lines:")
        for line in last_lines or ["(nothing)"]:
            self.say(f"  [dim]|[/dim] {escape(line)}")
        if isinstance(decision, RestartAfter):
            self.say(f"  starting it again in {decision.seconds:g} s; everything it said: {escape(str(log))}")

    def serving(self, stack: Stack, chats: bool, logs: Path) -> None:
        seconds = time.monotonic() - self._started_at
        name = escape(stack.served_name)
        self.say(
            f"[bold green]Ready[/bold green] in {seconds:.1f} s: [bold]{stack.url}[/bold]  model [bold]{name}[/bold]"
        )
        self.say(f"\n{escape(curl_line(stack, chats))}\n")
        chat = f"./distserve chat --url {stack.url}" if stack.port != 8000 else "./distserve chat"
        self.say(f"[dim]Talk to it: {chat}   Logs: {escape(str(logs))}   Stop everything: Ctrl-C[/dim]")

    def stopping(self, seconds: float) -> None:
        self.say(f"Stopping: running answers have {seconds:g} s to end. Ctrl-C again: now")

    def killed(self, name: str) -> None:
        self.say(f"[red]{name} did not end when asked and was killed[/red]")


def curl_line(stack: Stack, chats: bool) -> str:
    """A request to copy; two lines."""
    body: dict[str, object] = {"model": stack.served_name}
    body |= {"messages": [{"role": "user", "content": "Hello!"}]} if chats else {"prompt": "Hello"}
    body |= {"max_tokens": 64, "stream": True}
    path = "/v1/chat/completions" if chats else "/v1/completions"
    key = " -H 'Authorization: Bearer <key>'" if stack.api_keys else ""
    url = shlex.quote(stack.url + path)
    return f"curl -N {url}{key} -H 'Content-Type: application/json' \\\n  -d {shlex.quote(json.dumps(body))}"


def _describe(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
