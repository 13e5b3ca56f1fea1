"""Who answers a client learns that there is something to take; all at once, when everything that has come is taken in.

So a token leaves in the turn of the event loop in which it came. When the gateway is behind, more has come by then, and
all that a stream got leaves in one write: the larger the load, the cheaper a token.
"""

import asyncio
from collections.abc import Callable


class Outbox:
    """The bells that have been rung and not yet heard."""

    def __init__(self) -> None:
        self._rung: list[Bell] = []

    def add(self, bell: "Bell") -> None:
        if not self._rung:
            asyncio.get_running_loop().call_soon(self._answer_all)
        self._rung.append(bell)

    def _answer_all(self) -> None:
        rung, self._rung = self._rung, []
        for bell in rung:
            try:
                bell.answer()
            except Exception as error:  # of one answer: it ends there, and the others go on
                bell.fail(error)


class Bell:
    """Of one answer. Wakes the task that waits for it or, while there is one, calls who can do what is to be done."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._woken = asyncio.Event()
        self._write: Callable[[], bool] | None = None
        self._rung = False
        self._failure: Exception | None = None

    def set(self) -> None:
        """There is something to take."""
        if self._write is None:
            self._woken.set()
        elif not self._rung:
            self._rung = True
            self._outbox.add(self)

    def wake(self) -> None:
        """Let `wait` return, whatever there is."""
        self._woken.set()

    async def wait(self) -> None:
        """Until there may be something to take. Raises what went wrong in what `call` was given."""
        await self._woken.wait()
        self._woken.clear()
        if self._failure is not None:
            raise self._failure

    def call(self, write: Callable[[], bool] | None) -> None:
        """`write` does what is to be done without waiting, or returns False: then the task is woken. None: no more."""
        self._write = write

    def answer(self) -> None:
        self._rung = False
        if self._write is None or not self._write():
            self._woken.set()

    def fail(self, error: Exception) -> None:
        """Let the task meet what went wrong."""
        self._write, self._failure = None, error
        self._woken.set()
