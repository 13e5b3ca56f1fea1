"""When failed steps mean that an instance is broken, and when it may be the fault of one request."""

from collections.abc import Collection

from shared.specs.ids import RequestId


class StepFailures:
    """Failed steps in a row. Not counted: one with a request that was in the failed step before it too.

    A request that no engine can compute comes back until its gateway gives up. It must not take out of service every
    instance that it visits.
    """

    def __init__(self) -> None:
        self.in_a_row = 0
        self._suspects: frozenset[RequestId] = frozenset()

    def succeeded(self) -> None:
        self.in_a_row = 0
        self._suspects = frozenset()

    def failed(self, requests: Collection[RequestId]) -> None:
        """A step for these has failed."""
        if self._suspects.isdisjoint(requests):
            self.in_a_row += 1
        self._suspects = frozenset(requests)
