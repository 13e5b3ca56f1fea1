"""Tokens that one gateway alone can read.

All gateways share a key of the bus, so each could hear what the others are told. Every gateway process makes a key of
its own and sends it with its requests, which schedulers and workers alone hear: what it is told is sealed with that.
"""

from functools import lru_cache
from typing import TypeVar

from nacl.exceptions import CryptoError
from nacl.secret import SecretBox
from nacl.utils import random

from shared.messages.codec import MalformedMessage, decode, encode
from shared.messages.requests import SEAL_KEY_BYTES
from shared.messages.tokens import Sealed

M = TypeVar("M")


def new_seal_key() -> bytes:
    return random(SEAL_KEY_BYTES)


def seal(message: object, key: bytes) -> Sealed:
    return Sealed(box=bytes(_box(key).encrypt(encode(message))))


def unseal(sealed: Sealed, key: bytes, kind: type[M]) -> M:
    """What was sealed with `key`, which must be of that `kind`; else MalformedMessage."""
    try:
        data = _box(key).decrypt(sealed.box)
    except (CryptoError, ValueError):  # ValueError: too short to hold a nonce
        raise MalformedMessage("it was not sealed with this key, or is not what was sealed") from None
    return decode(data, kind)


@lru_cache(maxsize=64)
def _box(key: bytes) -> SecretBox:
    return SecretBox(key)
