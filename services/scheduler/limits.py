"""The bounds and patience of the dispatcher."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    queue_requests: int = 1024  # that may wait here for an instance
    queue_tokens: int = 1_000_000  # context tokens of those
    queue_seconds: float = 5.0  # that who comes may have to wait, if `queue_always` wait already; 0: any
    queue_always: int = 32  # requests that may wait however long that takes
    settle_seconds: float = 1.2  # after the start: by then every instance has been heard
    instance_lost_seconds: float = 3.5  # without a beat: three were due
    gateway_lost_seconds: float = 4.5  # its requests are aborted within 5 s of its death
    asleep_seconds: float = 1.0  # between two ticks: then the silence of others proves nothing
    unlisted_seconds: float = 3.0  # a request that its holder's beats do not list for so long is gone
    patience_seconds: float = 10.0  # for a waiting request that nobody can serve any more
    return_seconds: float = 60.0  # for somebody to serve a model again, once its last instance has gone
    renew_seconds: float = 1.0  # between renewals of the leases of KV that waits
    no_instance_retry_seconds: float = 2.0
    unmeasured_retry_seconds: float = 5.0  # for a full queue before anything has left it
