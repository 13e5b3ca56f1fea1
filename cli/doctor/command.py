"""`./distserve doctor`: looks at everything, shows a table, ends with a status for scripts."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import structlog
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cli.doctor import gpus as nvidia
from cli.doctor import machine, machine_verdicts, stack, stack_verdicts
from cli.doctor.findings import Finding, exit_status, ok, problem
from cli.doctor.pair_report import PairReport
from cli.held_ports import hold_port
from cli.preflight import DEMO, HUB_ID, check_model, downloaded
from cli.problems import Problem
from cli.run_folder import newest_running
from shared.bus.settings import BusSettings
from shared.specs.settings import BadSetting

ROOT = Path(__file__).resolve().parents[2]
STATE = ROOT / ".distserve"
DEFAULT_URL = "http://127.0.0.1:8000"
MARKS = {"ok": "[green]✓[/green]", "warning": "[yellow]![/yellow]", "problem": "[red]✗[/red]"}
REINSTALL = "remove .venv and start ./distserve again: it is made anew"


def doctor(
    url: Annotated[
        str,
        typer.Option(envvar="DISTSERVE_URL", help="The gateway.", show_default="the running ./distserve up, if any"),
    ] = "",
    nats: Annotated[str, typer.Option(envvar="NATS_URL", help="The NATS server.", show_default="as --url")] = "",
    key: Annotated[
        Path | None,
        typer.Option(envvar="NATS_NKEY_SEED_FILE", metavar="FILE", help="The operator's seed, from ./distserve keys."),
    ] = None,
    ca: Annotated[
        Path | None,
        typer.Option(envvar="NATS_CA_FILE", metavar="FILE", help="Certificate authority of a tls:// server."),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            envvar="DISTSERVE_MODEL",
            metavar="MODEL",
            help="What to look at: a folder, a hub id, `demo`.",
            show_default="what the running ./distserve up serves, or demo",
        ),
    ] = "",
    strict: Annotated[bool, typer.Option("--strict", help="Exit status 1 for warnings too.")] = False,
) -> None:
    """Look at this machine and at a running stack, and say what to do. Exit status 1: there is a problem."""
    running = newest_running(STATE / "run")
    if running is not None and not nats:
        url, nats = url or running.gateway_url, running.nats_url
        key = key or Path(running.operator_seed)
        model = model or running.model
    console = Console()
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())  # it provokes refusals; the table tells them
    with console.status("Looking at the machine"):
        beside = bool(url or nats)
        findings, pair = look_at_machine(model or ("" if beside else DEMO), loaded=beside)
    if url or nats:
        with console.status("Listening to the stack"):
            findings += asyncio.run(look_at_stack(url, nats, key, ca, pair))
    else:
        findings.append(stack_verdicts.judge_port(DEFAULT_URL, _port_trouble(DEFAULT_URL)))
    console.print(table(findings))
    console.print(summary(findings), highlight=False)
    raise typer.Exit(exit_status(findings, strict=strict))


def look_at_machine(model: str, *, loaded: bool) -> tuple[list[Finding], PairReport | None]:
    """The findings, and what two processes of this machine make of moving KV.

    `model`: "" if it is not known. `loaded`: a running stack has it.
    """
    findings = machine_verdicts.judge_python(machine.read_python(ROOT))
    gpus, gpu_findings = _look_at_gpus()
    resources = machine.read_resources()
    findings += [*machine_verdicts.judge_resources(resources, len(gpus)), *gpu_findings]
    pair: PairReport | None = None
    if machine.has_ucxx():
        transports, pair = _look_at_ucx(len(gpus))
        findings += transports
    else:
        findings.append(ok("UCX", "not tried: ucxx is not installed here. The instances try every link themselves"))
    if model:
        findings.append(_look_at_model(model, resources.memory_bytes, loaded=loaded))
    return findings, pair


def _look_at_ucx(gpus: int) -> tuple[list[Finding], PairReport | None]:
    findings = [_probed("UCX", lambda: machine_verdicts.judge_transports(machine.ucx_transports(ROOT), gpus))]
    try:
        pair = machine.kv_pair(ROOT)
    except machine.ProbeFailed as error:
        return [*findings, problem("KV between processes", str(error), REINSTALL)], None
    findings += machine_verdicts.judge_memory_access(machine.read_isolation(), pair.memory_access)
    return [*findings, machine_verdicts.judge_pair(pair)], pair


def _look_at_gpus() -> tuple[list[nvidia.Gpu], list[Finding]]:
    try:
        listing, access = machine.nvidia_smi(*nvidia.QUERY), machine.nvidia_smi(*nvidia.PEER_ACCESS)
    except machine.ProbeFailed as error:
        return [], [problem("GPUs", f"nvidia-smi: {error}", "the driver is not in order: reinstall it, or restart")]
    gpus = nvidia.gpus_in(listing or "")
    return gpus, machine_verdicts.judge_gpus(gpus, nvidia.without_peer_access(access or ""))


def _probed(topic: str, judge: Callable[[], Finding]) -> Finding:
    try:
        return judge()
    except machine.ProbeFailed as error:
        return problem(topic, str(error), REINSTALL)


def _look_at_model(model: str, memory_bytes: int, *, loaded: bool) -> Finding:
    folder = STATE / "models" / DEMO if model == DEMO else downloaded(model) or Path(model)
    if not folder.exists() and (model == DEMO or HUB_ID.fullmatch(model)):
        return ok("model", f"{model}: made or downloaded by the first start")
    try:
        check_model(folder)
    except Problem as error:
        return problem("model", str(error), "give --model a Hugging Face folder with config, tokenizer and safetensors")
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return machine_verdicts.judge_weights(model, weights, memory_bytes, instances=2, loaded=loaded)


async def look_at_stack(
    url: str, nats: str, key: Path | None, ca: Path | None, pair: PairReport | None
) -> list[Finding]:
    findings: list[Finding] = []
    if url:
        findings.append(stack_verdicts.judge_gateway(url, await stack.gateway_answer(url)))
    if not nats:
        return findings
    try:
        settings = BusSettings(url=nats, nkey_seed_file=key, ca_file=ca)
    except BadSetting as error:
        return [*findings, problem("NATS", str(error), "see ./distserve doctor --help")]
    report = await stack.listen(settings)
    findings += stack_verdicts.judge_bus(report)
    if not report.error:
        copy = pair.copy_gigabytes_per_second if pair else None
        findings += stack_verdicts.judge_fleet(list(report.heard.values()), copy)
    return findings


def _port_trouble(url: str) -> str:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    try:
        hold_port(parts.hostname, parts.port).close()
    except Problem as error:
        return str(error)
    return ""


def table(findings: list[Finding]) -> Table:
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    shown.add_column(width=1)
    shown.add_column(no_wrap=True, style="bold")
    shown.add_column(overflow="fold")
    for finding in findings:
        remedy = f"\n[cyan]→ {escape(finding.remedy)}[/cyan]" if finding.remedy else ""
        shown.add_row(MARKS[finding.status], escape(finding.topic), escape(finding.fact) + remedy)
    return shown


def summary(findings: list[Finding]) -> str:
    problems, warnings = (sum(f.status == status for f in findings) for status in ("problem", "warning"))
    if not problems and not warnings:
        return "\n[green]Nothing to do.[/green]"
    return f"\n{problems} problem(s), {warnings} warning(s)"
