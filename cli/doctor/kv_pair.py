"""How KV would move between two processes of this machine: the services' own link test, and a plain copy beside it.

`python -m cli.doctor.kv_pair` is the prefill side. It starts the decode side as its child: a child may read its
parent's memory only where any process of this user may, as with services started one beside the other. Prints one
line of JSON.
"""

import asyncio
import ctypes
import errno
import json
import os
import sys
import time
from typing import Any

import numpy as np
import structlog

from cli.doctor.pair_report import PairReport
from shared.messages.codec import decode, encode
from shared.messages.handoff import LinkTest, LinkTestAnswer
from shared.specs.ids import InstanceId
from shared.transport.selftest import DISTINCT_PIECES, PIECE_BYTES, TIMED_PIECES, answer_link_test, test_link
from shared.transport.ucx import UcxTransport

PREFILL, DECODE = InstanceId("prefill-0000d0c1"), InstanceId("decode-0000d0c2")
COPY_ROUNDS = 5


def plain_copy_gigabytes_per_second() -> float:
    """The best of a few rounds, each of which copies in this process what the timed round of the link test moves."""
    source, target = (np.ones((DISTINCT_PIECES, PIECE_BYTES), np.uint8) for _ in range(2))
    seconds = []
    for _ in range(COPY_ROUNDS):
        began = time.perf_counter()
        for number in range(TIMED_PIECES):
            target[number % DISTINCT_PIECES] = source[number % DISTINCT_PIECES]
        seconds.append(time.perf_counter() - began)
    return TIMED_PIECES * PIECE_BYTES / min(seconds) / 1e9


def read_memory_of(pid: int, address: int) -> str:
    """Read one byte of another process as CMA does; "" or the error's name, such as EPERM."""
    libc = ctypes.CDLL(None, use_errno=True)
    byte = ctypes.create_string_buffer(1)
    here = (ctypes.c_size_t * 2)(ctypes.addressof(byte), 1)  # struct iovec
    there = (ctypes.c_size_t * 2)(address, 1)
    done = libc.process_vm_readv(pid, here, ctypes.c_ulong(1), there, ctypes.c_ulong(1), ctypes.c_ulong(0))
    return "" if done == 1 else errno.errorcode[ctypes.get_errno()]


async def prefill() -> None:
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli.doctor.kv_pair", "decode"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    memory = ctypes.create_string_buffer(b"x")
    async with UcxTransport() as transport:
        hello = [transport.address.hex(), os.getpid(), ctypes.addressof(memory)]
        child.stdin.write(json.dumps(hello).encode() + b"\n")
        while (line := (await child.stdout.readline()).decode().strip()).startswith("ask "):
            answer = await answer_link_test(transport, decode(bytes.fromhex(line[4:]), LinkTest), _memory)
            child.stdin.write(encode(answer).hex().encode() + b"\n")
        child.stdin.close()
        if await child.wait():
            sys.exit("the receiving process ended early")
    sys.stdout.write(line + "\n")


async def decode_side() -> None:
    loop = asyncio.get_running_loop()
    address, pid, memory_address = json.loads(sys.stdin.readline())

    async def ask(message: LinkTest) -> LinkTestAnswer:
        sys.stdout.write(f"ask {encode(message).hex()}\n")
        sys.stdout.flush()
        return decode(bytes.fromhex(await loop.run_in_executor(None, sys.stdin.readline)), LinkTestAnswer)

    access = read_memory_of(pid, memory_address)
    async with UcxTransport() as transport:
        link = await test_link(transport, PREFILL, bytes.fromhex(address), ask, _memory, DECODE)
    report = PairReport(link, access, plain_copy_gigabytes_per_second())
    sys.stdout.write(report.line() + "\n")
    sys.stdout.flush()


def _memory(size: int) -> Any:
    return np.zeros(size, np.uint8)


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # stdout is for the answer
    asyncio.run(decode_side() if sys.argv[1:] == ["decode"] else prefill())
