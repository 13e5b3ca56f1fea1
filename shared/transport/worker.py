"""One UCX worker with its two threads, built from ucxx's core layer.

ucxx's asyncio layer has one worker for the whole process. Here there are several: stopping the progress thread of a
worker is the one thing after which certainly nothing touches the memory it was given, so whatever may have to be cut
off has its own.
"""

import asyncio
import threading
from collections.abc import Iterable
from typing import Any

import structlog

from shared.transport.transfer import Message, MessageFailed
from shared.transport.ucp import drop_unexpected

log = structlog.get_logger()

# How long a progress thread sleeps unless UCX wakes it. Host transports wake it for all that they have to do; for CUDA
# this is ucxx's own default, at 2 % of a core per worker.
_HOST_SLEEP_MILLISECONDS = 100
_CUDA_SLEEP_MILLISECONDS = 1
_NOTIFIER_SLEEP_NANOSECONDS = 10**9


class UcxContext:
    """What the workers of one transport share. Imports ucxx, so the environment must have been prepared."""

    def __init__(self, cuda_device: int | None) -> None:
        from ucxx import libucxx

        self.api = libucxx
        self.cuda_device = cuda_device
        self.handle = libucxx.UCXContext({})


class UcxWorker:
    """A worker whose requests are awaited as futures of the running loop."""

    def __init__(self, context: UcxContext) -> None:
        self.api = context.api
        self.loop = asyncio.get_running_loop()
        self.cuda = context.cuda_device is not None
        self.handle: Any = self.api.UCXWorker(context.handle, enable_delayed_submission=True, enable_python_future=True)
        # UCX keeps no buffer alive, and a request that is dropped cancels its message: both are kept until its end.
        self._held: dict[Message, tuple[Any, Any]] = {}
        self._stopping = asyncio.Lock()
        self._notifier = threading.Thread(target=self._notify, args=(self.handle,), name="ucx-notifier", daemon=True)
        self._notifier.start()
        if self.cuda:
            self.handle.set_progress_thread_start_callback(_use_cuda_device, (context.cuda_device,))
        self._start()
        self.address = bytes(self.handle.address)

    def watch(self, request: Any, array: Any) -> Message:
        """The future of a request that has just been made. Whoever else looks at it or not, its error has been seen."""
        message: Message = request.future
        self._held[message] = (request, array)
        message.add_done_callback(self._ended)
        return message

    async def withdraw(self, messages: Iterable[Message]) -> None:
        """Cancel receives to which nothing has been sent; the others go on. They end soon after this has returned.

        Progress pauses meanwhile: ucxx can deadlock when a request is cancelled while another thread completes it.
        """
        async with self._stopping:
            if self.handle is None:
                return
            await asyncio.to_thread(self.handle.stop_progress_thread)
            for message in messages:
                if message in self._held:
                    self._held[message] = (None, self._held[message][1])
            self._start()

    async def close(self) -> None:
        """On return both threads have ended, every message has too, and no memory is touched any more."""
        async with self._stopping:
            handle, self.handle = self.handle, None
            if handle is None:
                return
            await asyncio.to_thread(handle.stop_progress_thread)
            drop_unexpected(handle.handle)
            unended = list(self._held)
            self._held.clear()
            handle.stop_request_notifier_thread()
            await asyncio.to_thread(self._notifier.join)
            handle.run_request_notifier()  # for those that have just been cancelled by being dropped
        cut_off = [message for message in unended if not message.done()]
        for message in cut_off:
            message.set_exception(MessageFailed("its worker has been stopped"))
        if cut_off:
            log.warning("kv_messages_cut_off", messages=len(cut_off))

    def _start(self) -> None:
        sleep = _CUDA_SLEEP_MILLISECONDS if self.cuda else _HOST_SLEEP_MILLISECONDS
        self.handle.start_progress_thread(polling_mode=False, epoll_timeout=sleep)

    def _ended(self, message: Message) -> None:
        self._held.pop(message, None)
        message.exception()

    def _notify(self, handle: Any) -> None:
        """The notifier thread: hands ended requests to the loop, and keeps futures in store for new ones."""
        states = self.api.PythonRequestNotifierWaitState
        asyncio.set_event_loop(self.loop)  # ucxx makes the futures in this thread, for this loop
        while True:
            handle.populate_python_futures_pool()
            state = handle.wait_request_notifier(period_ns=_NOTIFIER_SLEEP_NANOSECONDS)
            if state == states.Shutdown:
                break
            if state == states.Ready:
                self.loop.call_soon_threadsafe(handle.run_request_notifier)
        handle.clear_python_futures_pool()
        asyncio.set_event_loop(None)


def _use_cuda_device(device: int) -> None:
    """Runs in the progress thread: UCX needs a current CUDA context there."""
    from ucxx._cuda_context import ensure_cuda_context

    ensure_cuda_context(device)
