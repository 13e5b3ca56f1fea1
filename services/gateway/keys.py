"""Who may use the API, and how much. Keys are kept as SHA-256 only: whoever reads the settings cannot use them."""

import hashlib
import hmac
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

HASHED = "sha256:"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyLimits:
    """Of each key; None: no limit. Each choice of each prompt of a call is a request."""

    at_once: int | None = None  # requests that are being answered
    per_minute: int | None = None  # requests begun; a key that was quiet may begin as many at once

    @property
    def most(self) -> float:
        """More in one call are never allowed."""
        return min((limit for limit in (self.at_once, self.per_minute) if limit is not None), default=math.inf)


@dataclass(slots=True)
class Holder:
    """One key's use. Pure: time is given."""

    limits: KeyLimits
    running: int = 0
    _left: float = field(default=0.0, init=False)
    _left_at: float | None = field(default=None, init=False)

    def begin(self, now: float, count: int = 1) -> float:
        """0.0, and `count` requests are running until `end`; else the seconds until it is worth to ask again."""
        limits = self.limits
        if limits.at_once is not None and self.running + count > limits.at_once:
            return 1.0
        if limits.per_minute is not None:
            gained = limits.per_minute if self._left_at is None else (now - self._left_at) * limits.per_minute / 60
            self._left, self._left_at = min(self._left + gained, limits.per_minute), now
            if self._left < count:
                return (count - self._left) * 60 / limits.per_minute
            self._left -= count
        self.running += count
        return 0.0

    def end(self, count: int = 1) -> None:
        self.running -= count


class KeyRing:
    """The keys that open the API; none: it is open, and everybody is one holder."""

    def __init__(self, keys: Sequence[str], limits: KeyLimits) -> None:
        """Each of `keys` in clear, or `sha256:` and the digest in hexadecimal."""
        self._holders = [(digest_of(key), Holder(limits)) for key in keys]
        self._everybody = None if keys else Holder(limits)

    def holder(self, authorization: str) -> Holder | None:
        """Whose header this is; None: nobody's. Takes equally long for every key."""
        if self._everybody is not None:
            return self._everybody
        scheme, _, given = authorization.partition(" ")
        digest = hashlib.sha256(given.strip().encode()).digest()
        matches = [holder for known, holder in self._holders if hmac.compare_digest(known, digest)]
        return matches[0] if matches and scheme.lower() == "bearer" else None


def digest_of(key: str) -> bytes:
    """ValueError if what follows `sha256:` is not a digest."""
    if not key.startswith(HASHED):
        return hashlib.sha256(key.encode()).digest()
    digest = bytes.fromhex(key.removeprefix(HASHED))
    if len(digest) != hashlib.sha256().digest_size:
        raise ValueError(f"{len(digest)} bytes are no SHA-256")
    return digest
