"""What each role's key opens at a server that runs deploy/nats.conf, and that it opens nothing else."""

import asyncio
import contextlib
import importlib
import os
import pkgutil
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from nats.aio.msg import Msg

import shared.messages
from cli.keys import IDENTITIES, make_keys, seed_file
from shared.bus import Bucket, BusTimeout, BusUnavailable, NotPermitted
from shared.bus.nats import NatsBus
from shared.bus.settings import BusSettings
from shared.messages.codec import encode
from shared.messages.handoff import KvExpired, KvReady, KvReleased, KvRenewed, LinkTest, PullBlocks
from shared.messages.instances import Beat
from shared.messages.requests import AbortRequest, Accepted, RequestEnded, SubmitRequest
from shared.messages.tokens import RequestInterrupted, ResumeTokens, Sealed
from shared.messages.work import StartDecode, StartPrefill
from shared.specs.ids import RequestId
from tests.nats_server import GUARDED, NatsServer

MESSAGE = AbortRequest(request=RequestId("r"), attempt=0)  # the server looks at subjects alone
VIOLATION = "bus_permission_violation"


def of(role: str, template: str) -> str:
    return template.format(role=role, instance=f"{role}-1", gateway="gateway-1")


BEATS = {role: of(role, Beat.SUBJECT) for role in ("gateway", "scheduler", "prefill", "decode")}
RESUMES = {of("prefill", ResumeTokens.SUBJECT), of("decode", ResumeTokens.SUBJECT)}
TOKENS = of("gateway", Sealed.SUBJECT)
HANDOFF = {of("prefill", message.SUBJECT) for message in (PullBlocks, KvReleased, KvRenewed, LinkTest)}
STARTS = {of("prefill", StartPrefill.SUBJECT), of("decode", StartDecode.SUBJECT)}
TO_SCHEDULER = {KvReady.SUBJECT, KvExpired.SUBJECT, RequestEnded.SUBJECT}
SUBJECTS = {*BEATS.values(), *RESUMES, TOKENS, *HANDOFF, *STARTS, *TO_SCHEDULER}
SUBJECTS |= {SubmitRequest.SUBJECT, AbortRequest.SUBJECT}

SAYS = {
    "gateway": {SubmitRequest.SUBJECT, AbortRequest.SUBJECT, RequestEnded.SUBJECT, BEATS["gateway"], *RESUMES},
    "scheduler": {
        *STARTS,
        of("prefill", KvReleased.SUBJECT),
        of("prefill", KvRenewed.SUBJECT),
        RequestInterrupted.SUBJECT.format(gateway="gateway-1"),
        AbortRequest.SUBJECT,
        BEATS["scheduler"],
    },
    "prefill": {TOKENS, KvReady.SUBJECT, KvExpired.SUBJECT, BEATS["prefill"]},
    "decode": {TOKENS, BEATS["decode"], *HANDOFF},
    "operator": set[str](),
}
HEARS = {
    "gateway": {TOKENS, *BEATS.values()},
    "scheduler": {SubmitRequest.SUBJECT, AbortRequest.SUBJECT, *TO_SCHEDULER, *BEATS.values()},
    "prefill": {of("prefill", StartPrefill.SUBJECT), of("prefill", ResumeTokens.SUBJECT), AbortRequest.SUBJECT}
    | {*HANDOFF, *BEATS.values()},
    "decode": {of("decode", StartDecode.SUBJECT), of("decode", ResumeTokens.SUBJECT), AbortRequest.SUBJECT}
    | {*BEATS.values()},
    "operator": {*BEATS.values()},
}
LEASE, PLAN = Bucket("lease", ttl_seconds=60), Bucket("plan")
READS = {"scheduler": {"lease", "plan"}, "prefill": {"plan"}, "decode": {"plan"}, "operator": {"plan"}}
WRITES = {"scheduler": {"lease", "plan"}}
BROAD = (">", "ds.>", "ds.v1.>", "ds.v1.*.*.*", "_INBOX.>", "$SYS.>", "$JS.API.>", "$KV.>")

Connect = Callable[[str], Awaitable[NatsBus]]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[NatsServer, Path]]:
    """A server with permissions, and the folder of the keys."""
    folder = tmp_path_factory.mktemp("guarded")
    server = NatsServer(folder, GUARDED, make_keys(folder / "keys"))
    server.start()
    yield server, folder / "keys"
    server.stop()


@pytest.fixture
async def connect(guarded: tuple[NatsServer, Path]) -> AsyncIterator[Connect]:
    server, folder = guarded
    async with AsyncExitStack() as connections:

        async def open_connection(role: str) -> NatsBus:
            settings = BusSettings(url=server.url, nkey_seed_file=seed_file(folder, role))
            return await connections.enter_async_context(await NatsBus.connect(settings, name=role, role=role))

        yield open_connection


async def ignore(_: AbortRequest) -> None:
    pass


async def may_publish(bus: NatsBus, subject: str) -> bool:
    refused = bus.troubles.counts[VIOLATION]
    await bus.publish(subject, MESSAGE)
    assert await bus.round_trip()
    return bus.troubles.counts[VIOLATION] == refused


async def may_subscribe(bus: NatsBus, subject: str) -> bool:
    try:
        subscription = await bus.subscribe(subject, ignore, AbortRequest)
    except NotPermitted:
        return False
    await subscription.drain()
    return True


def test_every_subject_of_the_messages_is_in_the_tables_of_this_file():
    modules = [
        importlib.import_module(f"shared.messages.{m.name}") for m in pkgutil.iter_modules(shared.messages.__path__)
    ]
    templates = {kind.SUBJECT for module in modules for kind in vars(module).values() if hasattr(kind, "SUBJECT")}
    assert {of(role, template) for template in templates for role in BEATS} >= SUBJECTS
    assert all({of(role, template) for role in BEATS} & SUBJECTS for template in templates)
    assert {subject for said in SAYS.values() for subject in said} == SUBJECTS
    assert {subject for heard in HEARS.values() for subject in heard} == SUBJECTS


@pytest.mark.parametrize("role", IDENTITIES)
async def test_a_role_may_say_what_it_says_and_nothing_else(connect: Connect, role: str):
    bus = await connect(role)
    allowed = {subject for subject in SUBJECTS if await may_publish(bus, subject)}
    assert allowed == SAYS[role]


@pytest.mark.parametrize("role", IDENTITIES)
async def test_a_role_may_hear_what_it_hears_and_nothing_else(connect: Connect, role: str):
    bus = await connect(role)
    allowed = {subject for subject in SUBJECTS if await may_subscribe(bus, subject)}
    assert allowed == HEARS[role]


@pytest.mark.parametrize("role", IDENTITIES)
async def test_no_role_may_listen_in_on_everything_or_on_the_replies_to_another(connect: Connect, role: str):
    bus = await connect(role)
    others = [f"_INBOX_{other}.>" for other in IDENTITIES if other != role]
    assert not [subject for subject in (*BROAD, *others) if await may_subscribe(bus, subject)]
    assert await may_subscribe(bus, f"_INBOX_{role}.>")
    inboxes = [f"_INBOX_{other}.guessed" for other in IDENTITIES]
    assert not [
        subject for subject in (*inboxes, "$SYS.REQ.SERVER.PING", "$JS.API.INFO") if await may_publish(bus, subject)
    ]


@pytest.mark.parametrize("role", IDENTITIES)
async def test_a_role_reads_and_writes_the_buckets_that_it_needs_and_no_others(connect: Connect, role: str):
    scheduler, bus = await connect("scheduler"), await connect(role)
    for bucket in (LEASE, PLAN):
        await scheduler.key_value(bucket, AbortRequest).put("key", MESSAGE)
        names = (f"$KV.{bucket.name}.key", f"$JS.API.DIRECT.GET.KV_{bucket.name}.$KV.{bucket.name}.key")
        watches, reads = await may_subscribe(bus, names[0]), await may_publish(bus, names[1])
        assert watches is reads is (bucket.name in READS.get(role, ()))
        assert await may_publish(bus, names[0]) is (bucket.name in WRITES.get(role, ()))
        others = ("STREAM.DELETE", "STREAM.PURGE", "STREAM.MSG.DELETE", "STREAM.SNAPSHOT", "CONSUMER.CREATE")
        assert not [other for other in others if await may_publish(bus, f"$JS.API.{other}.KV_{bucket.name}")]
    assert not await may_publish(bus, "$JS.API.STREAM.CREATE.KV_other")
    if role in READS:
        async with asyncio.timeout(5), contextlib.aclosing(bus.key_value(PLAN, AbortRequest).watch("key")) as watch:
            entry = await anext(watch)
            assert entry is not None
            assert entry.value == MESSAGE


async def test_a_queue_group_makes_no_difference_to_a_refusal(connect: Connect):
    bus = await connect("decode")
    with pytest.raises(NotPermitted, match=r"ds\.v1\.submit.*NATS_NKEY_SEED_FILE"):
        await bus.subscribe(SubmitRequest.SUBJECT, ignore, AbortRequest, queue="scheduler")
    assert +bus.troubles.counts == {VIOLATION: 1}


async def test_one_refused_subscription_does_not_spoil_another(connect: Connect):
    bus = await connect("gateway")
    async with asyncio.TaskGroup() as tasks:
        good = tasks.create_task(may_subscribe(bus, TOKENS))
        bad = tasks.create_task(may_subscribe(bus, SubmitRequest.SUBJECT))
    assert (good.result(), bad.result()) == (True, False)


async def test_a_request_is_answered_in_the_inbox_it_came_with_and_there_only_once(connect: Connect):
    gateway, scheduler = await connect("gateway"), await connect("scheduler")
    answered = asyncio.Event()

    async def answer_twice(message: Msg) -> None:
        for attempt in range(2):
            await scheduler._client.publish(message.reply, encode(Accepted(request=RequestId("r"), attempt=attempt)))
        answered.set()

    await scheduler._client.subscribe(SubmitRequest.SUBJECT, cb=answer_twice)
    await scheduler.round_trip()
    reply = await gateway.request(SubmitRequest.SUBJECT, MESSAGE, Accepted, timeout_seconds=5)
    await answered.wait()
    await scheduler.round_trip()
    assert reply.attempt == 0
    assert +scheduler.troubles.counts == {VIOLATION: 1}


async def test_a_refusal_is_an_alarm_in_the_log(connect: Connect, capsys: pytest.CaptureFixture[str]):
    bus = await connect("gateway")
    with pytest.raises(BusTimeout):
        await bus.request(of("decode", StartDecode.SUBJECT), MESSAGE, Accepted, timeout_seconds=0.2)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if VIOLATION in line]
    assert "error" in line
    assert "ds.v1.decode.decode-1.start" in line


async def test_without_a_key_or_with_one_of_another_installation_nobody_gets_in(
    guarded: tuple[NatsServer, Path], tmp_path: Path
):
    make_keys(tmp_path / "other")
    for seed in (None, seed_file(tmp_path / "other", "gateway")):
        with pytest.raises(BusUnavailable, match="NATS_NKEY_SEED_FILE"):
            await NatsBus.connect(BusSettings(url=guarded[0].url, nkey_seed_file=seed), name="x", role="gateway")


def test_a_server_without_its_keys_does_not_start(tmp_path: Path):
    with pytest.raises(RuntimeError, match="GATEWAY_NKEY"):
        NatsServer(tmp_path, GUARDED, {}).start()


def test_a_service_with_the_key_of_another_role_ends_with_one_line(guarded: tuple[NatsServer, Path], tmp_path: Path):
    server, folder = guarded
    ended = subprocess.run(
        [sys.executable, "-m", "services.scheduler.main"],
        env={
            **os.environ,
            "NATS_URL": server.url,
            "NATS_NKEY_SEED_FILE": str(seed_file(folder, "gateway")),
            "DISTSERVE_JOURNAL_DIR": str(tmp_path),
        },
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("scheduler: ")
    assert "permissions violation" in ended.stderr.splitlines()[-1]
