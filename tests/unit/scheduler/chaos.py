"""A scripted system around the dispatcher: gateways, instances and a bus that may lose, repeat and reorder."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from services.scheduler.events import (
    Abort,
    Accept,
    Deposed,
    Effect,
    Event,
    Forget,
    Interrupt,
    Refuse,
    SendDecode,
    SendPrefill,
    StartAnswer,
)
from services.scheduler.limits import Limits
from shared.messages.instances import Capacity, Load
from shared.specs.ids import InstanceId, RequestId
from tests.unit.scheduler.world import World

T = TypeVar("T")
PREFILLS = ("prefill-1", "prefill-2")
INSTANCES = (*PREFILLS, "decode-1", "decode-2")
RELIEF = ("prefill-3", "decode-3")  # come up at the end
CAPACITY = Capacity(
    max_model_tokens=500, block_tokens=16, blocks=64, max_batch=3, max_queue_tokens=300, max_queue_requests=2
)
Start = SendPrefill | SendDecode


@dataclass
class Worker:
    """An instance as its own process sees it."""

    name: str
    alive: bool = True
    ready: bool = True
    draining: bool = False
    links: tuple[str, ...] = PREFILLS
    works: dict[RequestId, int] = field(default_factory=dict)  # attempt of each request it has
    told_takes_work: bool = False  # as its last beat said
    told_links: tuple[str | None, ...] = ()  # None: it prefills by itself


@dataclass
class Client:
    """A request as its gateway sees it."""

    gateway: str
    tokens: int
    attempt: int = 0
    over: bool = False

    @property
    def avoid(self) -> tuple[str, ...]:
        """As if each of its attempts had failed somewhere."""
        return INSTANCES[: self.attempt % (len(INSTANCES) + 1)]


class Chaos:
    """Each public method is something that may happen at any time; `n` picks whom it happens to."""

    def __init__(self) -> None:
        self.world = World(Limits(queue_requests=4, queue_tokens=900))
        self.world.feed = self.feed
        self.workers = {name: Worker(name) for name in INSTANCES}
        self.clients: dict[RequestId, Client] = {}
        self.lost_gateway = False
        self.was_deposed = False
        self.unanswered: list[Start] = []
        self.sent: set[tuple[RequestId, int, type]] = set()  # starts that may have succeeded
        self.interrupted: list[RequestId] = []
        self.missed: set[RequestId] = set()  # something was lost: their gateways have to ask
        self.open_attempts: Counter[tuple[RequestId, int]] = Counter()
        self.history: list[tuple[Event, list[Effect]]] = []
        self.pass_time(0.25)

    # -- what the dispatcher decides ----------------------------------------------------------------------------------

    def feed(self, event: Event) -> list[Effect]:
        effects = self.world.dispatcher.step(event)
        self.history.append((event, effects))
        for effect in effects:
            self.take(effect)
        return effects

    def take(self, effect: Effect) -> None:
        match effect:
            case SendPrefill() | SendDecode():
                self.take_start(effect)
            case Accept():
                self.open_attempts[effect.request, effect.attempt] = 1
            case Forget():
                self.open_attempts[effect.request, effect.attempt] = 0
                self.sent -= {(effect.request, effect.attempt, kind) for kind in (SendPrefill, SendDecode)}
            case Interrupt() if not self.clients[effect.request].over:
                is_present = effect.attempt == self.clients[effect.request].attempt
                assert is_present or self.was_deposed, "it forgot an attempt that it knew"
                self.interrupted += [effect.request] if is_present else []
            case Abort():
                for worker in self.workers.values():
                    if worker.alive and worker.works.get(effect.request, effect.attempt + 1) <= effect.attempt:
                        del worker.works[effect.request]
            case Refuse() if effect.reason != "invalid":
                self.clients[effect.request].over = True

    def take_start(self, start: Start) -> None:
        worker = self.workers[start.instance]
        assert worker.told_takes_work, f"{start} goes to an instance that is lost, not ready or draining"
        if isinstance(start, SendDecode):
            assert start.source in worker.told_links, f"{start} goes to an instance without that link"
        key = (start.request, start.attempt, type(start))
        assert key not in self.sent, f"{start}: another instance may have it already"
        self.sent.add(key)
        self.unanswered.append(start)

    # -- gateways -----------------------------------------------------------------------------------------------------

    def submit(self, n: int) -> None:
        request = RequestId(f"r{999 - len(self.clients)}")  # not in alphabetical order
        gateway = "gateway-2" if n % 3 == 0 and not self.lost_gateway else "gateway-1"
        self.clients[request] = Client(gateway, tokens=n % 300 + 1)
        self.send_submission(request)

    def submit_twice(self, n: int) -> None:
        if (request := self.some_open_request(n)) is not None and request not in self.interrupted:
            self.send_submission(request)

    def submit_next_attempt(self, n: int) -> None:
        if (request := self.some_open_request(n)) is not None:
            self.clients[request].attempt += 1
            self.send_submission(request)

    def submit_stale_attempt(self, n: int) -> None:
        request = self.some_open_request(n)
        live = self.world.dispatcher.board.live.get(request) if request is not None else None
        if request is not None and live is not None and live.attempt == self.clients[request].attempt > 0:
            client = self.clients[request]
            (refusal,) = self.world.submit(request, client.attempt - 1, gateway=client.gateway)
            assert isinstance(refusal, Refuse)

    def submit_interrupted(self, n: int) -> None:
        waiting, self.interrupted = self.interrupted, []
        for request in waiting:
            if not self.clients[request].over:
                self.clients[request].attempt += 1
                self.send_submission(request)

    def abort(self, n: int) -> None:
        if (request := self.some_open_request(n)) is not None:
            client = self.clients[request]
            client.over = True
            if n % 2:
                self.take(Abort(request=request, attempt=client.attempt))  # the instances hear it first
            self.world.abort(request, client.attempt)

    def lose_gateway(self, n: int) -> None:
        self.lost_gateway = True
        for client in self.clients.values():
            client.over = client.over or client.gateway == "gateway-2"

    def send_submission(self, request: RequestId) -> None:
        client = self.clients[request]
        facts = {"tokens": client.tokens, "gateway": client.gateway, "avoid": client.avoid}
        self.world.submit(request, client.attempt, final=400, resumed=client.attempt % 2 == 1, **facts)

    # -- instances ----------------------------------------------------------------------------------------------------

    def get_on(self, n: int) -> None:
        """Everything that was sent is taken, every prompt is computed, and some time passes."""
        self.settle_all_starts()
        for name in PREFILLS:
            self.say_all_computed(name)
        self.pass_time(0.5)

    def take_one(self, n: int) -> None:
        if (start := some(self.unanswered, n)) is not None:
            self.settle(start, "started", taken=True)

    def refuse_one(self, n: int) -> None:
        if (start := some(self.unanswered, n)) is not None:
            answers: tuple[StartAnswer, ...] = ("full", "unreachable", "unanswered", "rejected")
            self.settle(start, answers[n % 4], taken=n % 8 < 4)

    def say_computed_twice(self, n: int) -> None:
        for _ in range(2):
            self.say_all_computed(PREFILLS[n % 2])

    def lose_lease(self, n: int) -> None:
        worker = self.workers[PREFILLS[n % 2]]
        for request, attempt in list(worker.works.items())[:1]:
            del worker.works[request]
            if n % 4 < 2 and worker.alive:
                self.world.kv_lost(request, worker.name, attempt)
            else:
                self.missed.add(request)

    def finish(self, n: int) -> None:
        worker = self.workers[INSTANCES[n % 4]]
        for request, attempt in list(worker.works.items())[:1]:
            if worker.alive and attempt == self.clients[request].attempt:
                self.finish_one(request, heard=n % 3 > 0)

    def die(self, n: int) -> None:
        self.workers[("prefill-1", "decode-1")[n % 2]].alive = False

    def change(self, n: int) -> None:
        worker = self.workers[INSTANCES[n % 4]]
        worker.ready, worker.draining = n % 5 > 0, n % 7 == 0
        worker.links = (PREFILLS, PREFILLS[:1], PREFILLS[1:], ())[n % 11 % 4]

    def beat(self, n: int) -> None:
        self.send_beat(self.workers[INSTANCES[n % 4]])

    def wait(self, n: int) -> None:
        self.pass_time((0.25, 0.5, 1.0, 1.0)[n % 4])

    def sleep(self, n: int) -> None:
        """The scheduler itself stands still."""
        self.tick(2.0 + n % 8)

    def depose(self, n: int) -> None:
        """Another scheduler leads for a moment. What was on its way arrives or not, and nobody hears which."""
        for start in self.unanswered[:]:
            worker = self.workers[start.instance]
            if worker.alive and n % 2:
                worker.works[start.request] = max(start.attempt, worker.works.get(start.request, 0))
        self.unanswered.clear()
        self.was_deposed = True
        before = set(self.world.dispatcher.board.live)
        self.feed(Deposed(now=self.world.now))
        self.missed |= before - set(self.world.dispatcher.board.live)

    def settle_all_starts(self) -> None:
        while self.unanswered:
            self.settle(self.unanswered[0], "started", taken=True)

    def settle(self, start: Start, answer: StartAnswer, *, taken: bool) -> None:
        self.unanswered.remove(start)
        worker = self.workers[start.instance]
        if not worker.alive and answer != "unreachable":
            answer = "unanswered"
        if worker.alive and (answer == "started" or (answer == "unanswered" and taken)):
            worker.works[start.request] = max(start.attempt, worker.works.get(start.request, 0))
        if answer in ("full", "unreachable"):
            self.sent.discard((start.request, start.attempt, type(start)))
        self.world.answer(start.instance, start.request, answer, start.attempt)

    def say_all_computed(self, name: str) -> None:
        worker = self.workers[name]
        for request, attempt in list(worker.works.items()):
            client = self.clients[request]
            if worker.alive and not client.over:
                facts = {"tokens": client.tokens, "gateway": client.gateway, "avoid": client.avoid}
                self.world.kv_computed(request, name, attempt, final=400, **facts)

    def finish_one(self, request: RequestId, *, heard: bool) -> None:
        client = self.clients[request]
        client.over = True
        for worker in self.workers.values():
            worker.works.pop(request, None)
        if heard:
            self.world.end(request, client.attempt)

    def pass_time(self, seconds: float) -> None:
        self.tick(seconds)
        for worker in self.workers.values():
            self.send_beat(worker)

    def tick(self, seconds: float) -> None:
        for gateway in ("gateway-1",) if self.lost_gateway else ("gateway-1", "gateway-2"):
            self.world.beat(gateway)
        self.world.tick(seconds)
        for worker in self.workers.values():
            known = self.world.dispatcher.board.fleet.get(InstanceId(worker.name))
            worker.told_takes_work = worker.told_takes_work and known is not None

    def send_beat(self, worker: Worker) -> None:
        if not worker.alive:
            return
        colocated = worker.name.startswith("decode")
        worker.told_takes_work, worker.told_links = worker.ready and not worker.draining, (*worker.links, None)
        self.world.beat(
            worker.name,
            ready=worker.ready,
            draining=worker.draining,
            colocated=colocated,
            linked=worker.links if colocated else (),
            capacity=CAPACITY,
            load=Load(running=len(worker.works), free_blocks=64 - 8 * len(worker.works)),
            requests=worker.works.items(),
        )

    # -- what must hold -----------------------------------------------------------------------------------------------

    def check_places(self) -> None:
        """Every live request is in exactly one place, and the sums are right."""
        board = self.world.dispatcher.board
        places = Counter(r for lines in (board.queue, board.kv) for name in lines.names() for r in lines.members(name))
        places.update(request for instance in board.fleet for request in instance.held)
        assert places == Counter(dict.fromkeys(board.live, 1))
        for lines, stage in ((board.queue, "queued"), (board.kv, "kv_waiting")):
            waiting = [live.context_tokens for live in board.live.values() if live.stage == stage]
            assert (lines.requests, lines.tokens) == (len(waiting), sum(waiting))
        assert all(instance.held_tokens == sum(instance.held.values()) for instance in board.fleet)

    def bring_to_an_end(self) -> None:
        """The faults stop, new instances come up. The dead stay dead: what they had must be given back by itself."""
        for name in RELIEF:
            self.workers[name] = Worker(name)
        for worker in self.workers.values():
            worker.ready, worker.draining, worker.links = True, False, (*PREFILLS, RELIEF[0])
        for _ in range(30):
            self.settle_all_starts()
            self.work()
            self.submit_interrupted(0)
            self.pass_time(0.75)
            self.submit_missed()
            if all(client.over for client in self.clients.values()) and self.world.is_empty:
                return

    def work(self) -> None:
        for worker in list(self.workers.values()):
            if worker.name.startswith("prefill"):
                self.say_all_computed(worker.name)
            for request, attempt in list(worker.works.items()):
                client = self.clients[request]
                if client.over:  # its gateway gets a stray token, and tells everybody to stop
                    self.take(Abort(request=request, attempt=client.attempt))
                    self.world.abort(request, client.attempt)
                elif worker.name.startswith("decode") and worker.alive and attempt == client.attempt:
                    self.finish_one(request, heard=True)

    def submit_missed(self) -> None:
        """Gateways ask for silent requests: one that no instance knows is submitted again."""
        silent, self.missed = self.missed, set()
        for request in silent:
            client = self.clients[request]
            if any(w.alive and w.works.get(request) == client.attempt for w in self.workers.values()):
                self.missed.add(request)
            elif not client.over:
                client.attempt += 1
                self.send_submission(request)

    def some_open_request(self, n: int) -> RequestId | None:
        return some([request for request, client in self.clients.items() if not client.over], n)


def some(items: Sequence[T], n: int) -> T | None:
    return items[n % len(items)] if items else None
