import asyncio

import pytest

from services.gateway.outbox import Bell, Outbox


async def test_what_comes_in_one_turn_is_written_once() -> None:
    outbox = Outbox()
    written: list[str] = []
    bells = {name: Bell(outbox) for name in "ab"}
    for name, bell in bells.items():
        bell.call(lambda name=name: written.append(name) is None)
    for name in "abba":
        bells[name].set()
    assert written == []
    await asyncio.sleep(0)
    assert written == ["a", "b"]
    bells["b"].set()
    await asyncio.sleep(0)
    assert written == ["a", "b", "b"]


async def test_the_task_is_woken_when_nobody_writes_or_whoever_writes_would_have_to_wait() -> None:
    bell = Bell(Outbox())
    bell.set()
    await asyncio.wait_for(bell.wait(), 5)
    bell.call(lambda: False)
    bell.set()
    await asyncio.wait_for(bell.wait(), 5)
    bell.call(lambda: True)
    bell.set()
    await asyncio.sleep(0.01)
    bell.wake()
    await asyncio.wait_for(bell.wait(), 5)


async def test_an_answer_that_cannot_be_written_ends_its_own_task_and_no_other() -> None:
    def fail() -> bool:
        raise ValueError("no text")

    outbox, written = Outbox(), list[str]()
    broken, sound = Bell(outbox), Bell(outbox)
    broken.call(fail)
    sound.call(lambda: written.append("text") is None)
    broken.set()
    sound.set()
    await asyncio.sleep(0)
    assert written == ["text"]
    with pytest.raises(ValueError, match="no text"):
        await asyncio.wait_for(broken.wait(), 5)
