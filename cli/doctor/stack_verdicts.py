"""What was heard of a running stack means. Pure."""

from collections.abc import Sequence

from cli.doctor.findings import Finding, ok, problem, warning
from cli.doctor.machine_verdicts import speed
from cli.doctor.stack import BusReport, Heard
from shared.messages.instances import Beat

CLOCK_SECONDS = 0.5  # beats take milliseconds; a busy machine some tens
KEY_REMEDY = "start nats-server with deploy/nats.conf and the keys of ./distserve keys"


def judge_bus(report: BusReport) -> list[Finding]:
    if report.error:
        return [problem("NATS", report.error, "see ./distserve doctor --help for --nats, --key and --ca")]
    found = [ok("NATS", report.url)]
    if report.lock == "open":
        found.append(warning("permissions", "the server lets in whoever reaches it, without a key", KEY_REMEDY))
    elif report.lock == "wide":
        found.append(warning("permissions", "this key may listen to everything, prompts included", KEY_REMEDY))
    else:
        found.append(ok("permissions", "nobody without a key; the operator's key hears the beats alone"))
    return found


def judge_fleet(heard: Sequence[Heard], copy_gigabytes_per_second: float | None) -> list[Finding]:
    if not heard:
        return [problem("instances", "nobody beats", "no service is connected to this NATS server: start the stack")]
    beats = sorted((one.beat for one in heard), key=lambda beat: beat.instance)
    found = [*_judge_roles(beats)]
    for one in sorted(heard, key=lambda one: one.beat.instance):
        found.extend(_judge_instance(one))
    for decode in beats:
        if decode.role == "decode":
            found.extend(_judge_links(decode, beats, copy_gigabytes_per_second))
    return found


def _judge_roles(beats: Sequence[Beat]) -> list[Finding]:
    found = []
    counts = {role: sum(beat.role == role for beat in beats) for role in ("gateway", "scheduler", "prefill", "decode")}
    found.append(ok("instances", ", ".join(f"{count} {role}" for role, count in counts.items())))
    colocated = any(beat.colocated for beat in beats)
    for role, count in counts.items():
        if not count and not (role == "prefill" and colocated):
            found.append(problem("instances", f"no {role}", f"start one: requests need a {role} instance"))
    leading = sum(beat.role == "scheduler" and beat.term > 0 for beat in beats)
    if counts["scheduler"] and leading != 1:
        remedy = (
            "one takes over within three seconds: ask again, and if it stays so see leadership_changed in their logs"
        )
        found.append(warning("instances", f"{leading} of {counts['scheduler']} schedulers lead", remedy))
    return found


def _judge_instance(one: Heard) -> list[Finding]:
    beat, found = one.beat, []
    if not beat.ready:
        remedy = "see its log; an instance that is loading becomes ready by itself"
        found.append(problem(beat.instance, f"takes no work: {beat.detail or 'no reason given'}", remedy))
    if beat.draining:
        found.append(warning(beat.instance, "draining: takes no more work", "it was told to end; start another if not"))
    if abs(one.lateness_seconds) > CLOCK_SECONDS and beat.sent_at:
        apart = f"its clock is {one.lateness_seconds:+.1f} s from ours"
        found.append(warning(beat.instance, apart, "traces across hosts will be out of order: run NTP on both"))
    return found


def _judge_links(decode: Beat, beats: Sequence[Beat], copy: float | None) -> list[Finding]:
    links, found = {link.peer: link for link in decode.links}, []
    for prefill in (beat for beat in beats if beat.role == "prefill"):
        pair, link = f"{prefill.instance} to {decode.instance}", links.get(prefill.instance)
        if link is None:
            found.append(warning(pair, "not tried yet", "ask again in a few seconds; if it stays so, see decode's log"))
        elif not link.ok:
            found.append(problem(pair, f"KV cannot move: {link.detail}", "see decode's log for kv_link_tested"))
        else:
            shown = f"{link.transport}, {link.gigabytes_per_second:.1f} GB/s"
            if copy is not None and not link.transport.startswith("cuda"):  # the copy was in host memory
                shown = speed(link.transport, link.gigabytes_per_second, copy)
            found.append(warning(pair, shown, link.detail) if link.detail else ok(pair, shown))
    return found


def judge_gateway(url: str, answer: str) -> Finding:
    if not answer:
        return ok("gateway", f"{url} is ready")
    return problem("gateway", f"{url}: {answer}", "is this its address (--url)? If it is not ready yet, it says why")


def judge_port(url: str, error: str) -> Finding:
    """Without a running stack: whether the gateway could listen there."""
    return problem("port", error, "choose another with --port") if error else ok("port", f"{url} is free for a gateway")
