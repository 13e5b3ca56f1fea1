"""How many events the dispatcher decides on in a second: 8 prefill and 8 decode instances, 1000 live requests.

python -m tests.bench.bench_dispatcher [--requests 20000] [--live 1000]
"""

import argparse
import random
import statistics
import time
from collections import deque

from services.scheduler.dispatcher import Dispatcher
from services.scheduler.events import BeatHeard, Ended, Event, KvComputed, SendDecode, StartAnswered, Submitted, Ticked
from services.scheduler.limits import Limits
from services.scheduler.plain import tagged, to_json
from shared.messages.instances import Capacity, Load
from shared.specs.ids import InstanceId, RequestId, Role

PREFILLS = tuple(InstanceId(f"prefill-{number}") for number in range(8))
DECODES = tuple(InstanceId(f"decode-{number}") for number in range(8))
GATEWAY = InstanceId("gateway-0")
CAPACITY = Capacity(
    max_model_tokens=8192, block_tokens=16, blocks=8192, max_batch=256, max_queue_tokens=16384, max_queue_requests=64
)
EVENTS_PER_SECOND = 5000  # of the virtual clock: decides how often beats and ticks come


class Bench:
    """Every start is taken, prompts are computed at once; a request ends when `live` younger ones have come."""

    def __init__(self, live: int) -> None:
        self._dispatcher = Dispatcher(Limits(settle_seconds=0.0))
        self._live_bound = live
        self._live: deque[RequestId] = deque()
        self._next: deque[Event] = deque()
        self._facts: dict[RequestId, Submitted] = {}
        self._sent_to: dict[RequestId, InstanceId] = {}
        self._beats = 0
        self.seconds: dict[str, list[float]] = {}
        self.journal_seconds: list[float] = []
        self.step(Ticked(now=0.0))
        self.beat(0.0)

    def run(self, requests: int) -> None:
        chance, now, beaten_at = random.Random(1), 0.0, 0.0
        for number in range(requests):
            self._next.append(self._submission(RequestId(f"request-{number:08d}"), chance.randint(16, 2048), now))
            while self._next:
                now += 1 / EVENTS_PER_SECOND
                self.step(self._next.popleft())
            if now - beaten_at >= 0.25:
                beaten_at = now
                self.step(Ticked(now=now))
                self.beat(now)
            if len(self._live) > self._live_bound:
                request = self._live.popleft()
                del self._facts[request], self._sent_to[request]
                self.step(Ended(now=now, request=request, attempt=0))

    def _submission(self, request: RequestId, tokens: int, now: float) -> Submitted:
        self._live.append(request)
        facts = self._facts[request] = Submitted(
            now=now,
            request=request,
            attempt=0,
            gateway=GATEWAY,
            model="m",
            context_tokens=tokens,
            final_tokens=tokens + 256,
            resumed=False,
        )
        return facts

    def step(self, event: Event) -> None:
        began = time.perf_counter()
        effects = self._dispatcher.step(event)
        decided = time.perf_counter()
        to_json({"event": tagged(event), "effects": [tagged(effect) for effect in effects]})
        self.journal_seconds.append(time.perf_counter() - decided)
        self.seconds.setdefault(type(event).__name__, []).append(decided - began)
        for effect in effects:
            request = getattr(effect, "request", None)
            instance = getattr(effect, "instance", None)
            if request is None or instance is None:
                continue
            self._sent_to[request] = instance
            self._next.append(
                StartAnswered(now=event.now, instance=instance, request=request, attempt=0, answer="started")
            )
            if not isinstance(effect, SendDecode):
                self._next.append(self._computed(self._facts[request], instance))

    def _computed(self, facts: Submitted, source: InstanceId) -> KvComputed:
        return KvComputed(
            now=facts.now,
            request=facts.request,
            attempt=0,
            gateway=GATEWAY,
            model="m",
            context_tokens=facts.context_tokens,
            final_tokens=facts.final_tokens,
            source=source,
        )

    def beat(self, now: float) -> None:
        self._beats += 1
        self.step(BeatHeard(now=now, instance=GATEWAY, role="gateway", number=self._beats))
        roles: tuple[tuple[Role, tuple[InstanceId, ...]], ...] = (("prefill", PREFILLS), ("decode", DECODES))
        for role, instances in roles:
            for instance in instances:
                held = tuple((request, 0) for request, at in self._sent_to.items() if at == instance)
                self.step(
                    BeatHeard(
                        now=now,
                        instance=instance,
                        role=role,
                        number=self._beats,
                        model="m",
                        capacity=CAPACITY,
                        load=Load(running=len(held), free_blocks=8192 - 64 * len(held)),
                        linked=PREFILLS if role == "decode" else (),
                        requests=held,
                    )
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--live", type=int, default=1000)
    options = parser.parse_args()
    bench = Bench(options.live)
    bench.run(options.requests)
    everything = [seconds for times in bench.seconds.values() for seconds in times]
    print(f"{len(everything) / sum(everything):,.0f} decisions a second")
    for name, times in sorted(bench.seconds.items()):
        middle, most = statistics.median(times) * 1e6, statistics.quantiles(times, n=100)[98] * 1e6
        print(f"  {name:14} {len(times):7} times  p50 {middle:6.1f} us  p99 {most:6.1f} us")
    print(f"journal line     p50 {statistics.median(bench.journal_seconds) * 1e6:6.1f} us")


if __name__ == "__main__":
    main()
