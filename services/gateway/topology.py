"""Who is alive, as the beats tell: is there a way for a request, and whom to ask about one. Pure: times are given."""

from shared.messages.instances import Beat
from shared.specs.ids import InstanceId

LOST_AFTER_SECONDS = 3.0  # three beats missed
MOST_INSTANCES = 4096


class Topology:
    """The latest beat of every live instance."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._beats: dict[InstanceId, tuple[Beat, float]] = {}

    def note(self, beat: Beat, now: float) -> bool:
        """Take a beat in; one overtaken by a later one is ignored. True if its instance was not known before."""
        self._drop_lost(now)
        known = self._beats.get(beat.instance)
        if known is None and len(self._beats) >= MOST_INSTANCES:
            return False
        if known is None or beat.number > known[0].number:
            self._beats[beat.instance] = (beat, now)
        return known is None

    def holders(self, now: float) -> list[Beat]:
        """Every instance that may hold requests: also one that is draining, or not ready for new ones."""
        return [beat for beat in self._alive(now) if beat.role in ("prefill", "decode")]

    def seen(self, now: float) -> list[tuple[Beat, float]]:
        """Every live instance's latest beat and its age in seconds, by name."""
        found = [(beat, now - seen) for beat, seen in self._beats.values() if now - seen < LOST_AFTER_SECONDS]
        return sorted(found, key=lambda one: one[0].instance)

    def missing(self, now: float) -> list[str]:
        """What keeps a request from being served; empty if nothing does."""
        missing = []
        if not any(beat.role == "scheduler" and beat.ready for beat in self._alive(now)):
            missing.append("no scheduler is alive")
        prefill, decode = self._serving("prefill", now), self._serving("decode", now)
        if any(beat.colocated for beat in decode):
            return missing
        if not prefill:
            missing.append("no prefill instance is ready")
        if not decode:
            missing.append("no decode instance is ready")
        if prefill and decode and not any(_linked(source, target) for source in prefill for target in decode):
            missing.append("no decode instance has passed its transfer self-test with a prefill instance")
        return missing

    def most_tokens(self, now: float) -> int | None:
        """The longest sequence that every instance can hold; None while nobody says."""
        serving = [*self._serving("prefill", now), *self._serving("decode", now)]
        return min((beat.capacity.max_model_tokens for beat in serving if beat.capacity.max_model_tokens), default=None)

    def _serving(self, role: str, now: float) -> list[Beat]:
        beats = [beat for beat in self._alive(now) if beat.role == role and beat.model == self._model]
        return [beat for beat in beats if beat.ready and not beat.draining]

    def _alive(self, now: float) -> list[Beat]:
        return [beat for beat, seen in self._beats.values() if now - seen < LOST_AFTER_SECONDS]

    def _drop_lost(self, now: float) -> None:
        for instance in [i for i, (_, seen) in self._beats.items() if now - seen >= LOST_AFTER_SECONDS]:
            del self._beats[instance]


def _linked(prefill: Beat, decode: Beat) -> bool:
    return any(link.peer == prefill.instance and link.ok for link in decode.links)
