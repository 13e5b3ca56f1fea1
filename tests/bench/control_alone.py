"""One process of the control plane at a time, as fast as it can; all around it is played by this process, cheaply.

For bench_control. What is played speaks the real messages, but packs them by hand and unpacks no more than it needs.
"""

import asyncio
import itertools
import statistics
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import nats
from msgspec.structs import replace
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg

from shared.bus.heart import Heart
from shared.bus.nats import NatsBus
from shared.messages.codec import decode, encode
from shared.messages.handoff import KvHandle, KvReady
from shared.messages.instances import Beat, Capacity, Link, Load
from shared.messages.requests import Accepted, RequestEnded, SubmitRequest
from shared.messages.sealed import seal
from shared.messages.tokens import Sealed, TokenBatch, TokenRow
from shared.messages.work import StartDecode, Started, StartPrefill
from shared.specs.ids import BlockId, InstanceId, RequestId, Role
from shared.specs.sampling import Sampling
from tests.bench.control_stack import Client, Stack, running_stack

GATEWAY, SCHEDULER = InstanceId("gateway-bench"), InstanceId("scheduler-bench")
STEPS_AHEAD = 4  # of tokens that are sent and not yet read: the gateway always has something to do
SUBMISSIONS_AT_ONCE = 256
CAPACITY = Capacity(
    max_model_tokens=8192,
    block_tokens=16,
    blocks=1 << 16,
    max_batch=1 << 14,
    max_queue_tokens=1 << 22,
    max_queue_requests=1 << 14,
)


async def gateway_alone(streams: Sequence[int], seconds: float) -> None:
    print("a gateway alone, always a few steps behind")
    print("streams    tokens/s  cores  CPU us / token  tokens / core second  tokens / read")
    for count in streams:
        async with running_stack() as stack:
            await stack.start("gateway", "services.gateway.main")
            async with await NatsBus.connect(stack.nats.url, name=SCHEDULER, role="scheduler") as bus:
                print(f"{count:7} {await _flood(stack, bus, count, seconds)}", flush=True)


async def _flood(stack: Stack, bus: NatsBus, streams: int, seconds: float) -> str:
    works: list[SubmitRequest] = []

    async def accept(work: SubmitRequest) -> Accepted:
        works.append(work)
        return Accepted(request=work.request, attempt=work.attempt)

    await bus.subscribe(SubmitRequest.SUBJECT, accept, SubmitRequest)
    decode = Beat(instance=InstanceId("decode-bench"), role="decode", number=0, model="bench", colocated=True)
    scheduler = Beat(instance=SCHEDULER, role="scheduler", number=0)
    beats = [replace(decode, capacity=CAPACITY), scheduler]
    hearts = [Heart(bus, lambda number, beat=beat: replace(beat, number=number)) for beat in beats]
    beating = [asyncio.create_task(heart.run()) for heart in hearts]
    await stack.ready()
    clients = [await Client.connect(stack.port) for _ in range(streams)]
    most = 4000
    asking = [asyncio.create_task(client.ask(number, most)) for number, client in enumerate(clients)]
    while len(works) < streams:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    began, index, cpu = time.monotonic(), 0, stack.cpu_seconds()["gateway"]
    connection = await nats.connect(stack.nats.url)
    subject = Sealed.SUBJECT.format(gateway=works[0].gateway)
    while time.monotonic() - began < seconds and index < most:
        rows = [TokenRow(request=work.request, attempt=0, index=index, tokens=(stack.token,)) for work in works]
        batch = TokenBatch(source=decode.instance, step=index, rows=tuple(rows))
        await connection.publish(subject, encode(seal(batch, works[0].seal_key)))
        await asyncio.sleep(0)
        index += 1
        while min(len(client.call.read_at) for client in clients[:8]) < index - STEPS_AHEAD:  # noqa: ASYNC110
            await asyncio.sleep(0.0005)
    tokens = sum(len(client.call.read_at) for client in clients)
    took, spent = time.monotonic() - began, stack.cpu_seconds()["gateway"] - cpu
    reads = sum(len(set(client.call.read_at)) for client in clients)
    await connection.close()
    for task in (*beating, *asking):
        task.cancel()
    await asyncio.gather(*beating, *asking, return_exceptions=True)
    return (
        f"{tokens / took:11.0f} {spent / took:6.2f} {1e6 * spent / tokens:15.1f} {tokens / spent:21.0f} "
        f"{tokens / reads:14.1f}"
    )


async def scheduler_alone(instances: Sequence[int], seconds: float) -> None:
    print(f"a scheduler alone, {SUBMISSIONS_AT_ONCE} submissions at once, every start is taken at once")
    print("instances  dispatches/s  cores  CPU us / dispatch  accepted p50 ms   p99 ms")
    for count in instances:
        async with running_stack() as stack:
            await stack.start("scheduler", "services.scheduler.main")
            print(f"{count:9} {await _Crowd(stack, count).press(seconds)}", flush=True)


class _Crowd:
    """A gateway and `instances` instances that answer everything at once. Each request is placed twice, then over."""

    def __init__(self, stack: Stack, instances: int) -> None:
        self._stack = stack
        self._prefills = [InstanceId(f"prefill-{number}") for number in range(instances // 2)]
        self._decodes = [InstanceId(f"decode-{number}") for number in range(instances // 2)]
        self._numbers = itertools.count()
        self._works: dict[str, SubmitRequest] = {}
        self._placed: dict[str, asyncio.Future[None]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._nats = Nats()
        self._ready = asyncio.Event()
        self.dispatches = 0

    async def press(self, seconds: float) -> str:
        await self._nats.connect(self._stack.nats.url)
        await self._nats.subscribe(StartPrefill.SUBJECT.format(instance="*"), cb=self._prefill)
        await self._nats.subscribe(StartDecode.SUBJECT.format(instance="*"), cb=self._decode)
        await self._nats.subscribe(Beat.SUBJECT.format(role="scheduler", instance="*"), cb=self._note_scheduler)
        beating = asyncio.create_task(self._beat())
        async with asyncio.timeout(60):
            await self._ready.wait()
        accepted: list[float] = []
        until = time.monotonic() + seconds
        before, began, known = self._stack.cpu_seconds()["scheduler"], time.monotonic(), self.dispatches
        await asyncio.gather(*(self._submit(until, accepted) for _ in range(SUBMISSIONS_AT_ONCE)))
        took, spent = time.monotonic() - began, self._stack.cpu_seconds()["scheduler"] - before
        count = self.dispatches - known
        beating.cancel()
        await self._nats.close()
        p99 = sorted(accepted)[int(0.99 * (len(accepted) - 1))]
        return (
            f"{count / took:13.0f} {spent / took:6.2f} {1e6 * spent / count:18.1f} "
            f"{1e3 * statistics.median(accepted):16.2f} {1e3 * p99:8.2f}"
        )

    async def _note_scheduler(self, message: Msg) -> None:
        if decode(message.data, Beat).ready:  # it has listened for long enough
            self._ready.set()

    async def _beat(self) -> None:
        links = tuple(Link(peer=prefill, ok=True) for prefill in self._prefills)
        load = Load(free_blocks=1 << 16)
        roles: tuple[tuple[Role, list[InstanceId]], ...] = (("prefill", self._prefills), ("decode", self._decodes))
        for number in itertools.count(1):
            for role, names in roles:
                for name in names:
                    beat = Beat(instance=name, role=role, number=number, model="m", capacity=CAPACITY, load=load)
                    beat = replace(beat, links=links if role == "decode" else ())
                    await self._nats.publish(Beat.SUBJECT.format(role=role, instance=name), encode(beat))
            gateway = Beat(instance=GATEWAY, role="gateway", number=number)
            await self._nats.publish(Beat.SUBJECT.format(role="gateway", instance=GATEWAY), encode(gateway))
            await asyncio.sleep(1.0)

    async def _submit(self, until: float, accepted: list[float]) -> None:
        while time.monotonic() < until:
            name = f"request-{next(self._numbers)}"
            work = SubmitRequest(
                request=RequestId(name),
                attempt=0,
                gateway=GATEWAY,
                model="m",
                prompt=tuple(range(256)),
                sampling=Sampling(max_tokens=64),
            )
            self._works[name] = work
            placed = self._placed[name] = asyncio.get_running_loop().create_future()
            asked = time.monotonic()
            reply = await self._nats.request(SubmitRequest.SUBJECT, encode(work), timeout=10)
            assert b"Accepted" in reply.data, reply.data
            accepted.append(time.monotonic() - asked)
            await placed
            ended = RequestEnded(
                request=work.request,
                attempt=0,
                gateway=GATEWAY,
                outcome="length",
                prompt_tokens=256,
                output_tokens=64,
                ttft_seconds=0.1,
                tpot_seconds=0.1,
            )
            await self._nats.publish(RequestEnded.SUBJECT, encode(ended))
            del self._works[name], self._placed[name]

    async def _prefill(self, message: Msg) -> None:
        name = await self._started(message)
        source = InstanceId(message.subject.split(".")[3])
        blocks = tuple(BlockId(block) for block in range(16))
        kv = KvHandle(source=source, blocks=blocks, tokens=256, lease_seconds=30.0, first_token=1)
        offer = self._nats.request(KvReady.SUBJECT, encode(KvReady(work=self._works[name], kv=kv)), timeout=10)
        task = asyncio.create_task(offer)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _decode(self, message: Msg) -> None:
        self._placed[await self._started(message)].set_result(None)

    async def _started(self, message: Msg) -> str:
        self.dispatches += 1
        _, (work, *_) = msgspec.msgpack.decode(message.data)
        await message.respond(encode(Started(request=RequestId(work[0]), attempt=0)))
        return work[0]
