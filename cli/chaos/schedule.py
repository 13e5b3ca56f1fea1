"""Which faults happen when: a pure function of the seed, so that what has failed once can be made to fail again."""

import random
from collections.abc import Mapping
from dataclasses import dataclass

FIRST_SECONDS = 4.0  # the streams are under way by then
QUIET_SECONDS = 6.0  # at the end, without new faults
# Between the end of one fault and the next: mostly time to recover, sometimes less than it takes to be noticed.
LONG_PAUSES_SECONDS, SHORT_PAUSES_SECONDS = (8.0, 12.0), (0.5, 4.0)
SHORT_SHARE = 0.3

# What can happen, and how many seconds it may last.
KINDS: Mapping[str, tuple[float, ...]] = {
    "prefill killed": (0.0,),
    "decode killed": (0.0,),
    "every decode killed": (0.0,),
    "scheduler killed": (0.0,),
    "gateway killed": (0.0,),
    "nats killed": (0.1, 1.5, 10.0),  # until it is started again
    "prefill stopped": (2.0, 10.0),  # SIGSTOP, SIGCONT
    "decode stopped": (2.0, 10.0),
    "scheduler stopped": (10.0,),
    "gateway stopped": (2.0, 6.0),
    "nats stopped": (3.0, 12.0),
    "prefill restarted": (0.0,),  # SIGTERM: drains, ends, is started again
    "decode restarted": (0.0,),
    "scheduler restarted": (0.0,),
    "gateway restarted": (0.0,),
    "all restarted in turn": (60.0,),  # about
    "connection cut": (0.0,),  # of one process to NATS
    "connection hangs": (6.0,),
    "clients leave": (0.0,),
    "clients read slowly": (10.0,),
    "three times the clients": (10.0,),
    "disk full": (8.0,),  # for every service
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    at: float  # seconds after the start of the load
    kind: str
    seconds: float  # that it lasts
    pick: int  # which of those that it can befall, modulo their number

    @property
    def name(self) -> str:
        """Its kind, and how long it lasts if that differs."""
        return f"{self.kind} {self.seconds:g} s" if len(KINDS[self.kind]) > 1 else self.kind


def schedule(seed: int, seconds: float) -> list[Fault]:
    """Every kind comes once before one comes again."""
    chance = random.Random(seed)
    faults: list[Fault] = []
    deck: list[str] = []
    at = FIRST_SECONDS
    while at < seconds - QUIET_SECONDS:
        if not deck:
            deck = chance.sample(list(KINDS), len(KINDS))
        kind = deck.pop()
        fault = Fault(at=at, kind=kind, seconds=chance.choice(KINDS[kind]), pick=chance.randrange(1 << 16))
        faults.append(fault)
        at += fault.seconds
        at += chance.uniform(*(SHORT_PAUSES_SECONDS if chance.random() < SHORT_SHARE else LONG_PAUSES_SECONDS))
    return faults
