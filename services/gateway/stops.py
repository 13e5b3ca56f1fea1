"""Stop strings in a stream of text."""

from collections.abc import Sequence


class StopStrings:
    """Lets text through until a stop string is complete. What may be the beginning of one waits.

    The result does not depend on how the text is cut into pieces: the stop string that is complete first wins, and of
    two that are complete at the same character the one that began first.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._waiting = ""
        self.found = False

    def push(self, text: str) -> str:
        """The text that is now certain to be before any stop string. After `found` there is no more."""
        text = self._waiting + text
        matches = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if matches:
            self.found = True
            self._waiting = ""
            return text[: min(matches)[1]]
        kept = max((_beginning(stop, text) for stop in self._stops), default=0)
        self._waiting = text[len(text) - kept :]
        return text[: len(text) - kept]

    def finish(self) -> str:
        """The text that waited in vain."""
        waiting, self._waiting = self._waiting, ""
        return waiting


def _beginning(stop: str, text: str) -> int:
    """The length of the longest true beginning of `stop` that ends `text`."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
