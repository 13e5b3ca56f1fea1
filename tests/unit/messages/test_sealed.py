import pytest

from shared.messages.codec import MalformedMessage, decode, encode
from shared.messages.requests import AbortRequest, SubmitRequest
from shared.messages.sealed import new_seal_key, seal, unseal
from shared.messages.tokens import ResumedTokens, Sealed, TokenBatch, TokenRow
from shared.specs.ids import InstanceId, RequestId
from shared.specs.sampling import Sampling

KEY = bytes(range(32))
ROW = TokenRow(request=RequestId("r"), attempt=0, index=0, tokens=(5, 6, 7))
BATCH = TokenBatch(source=InstanceId("decode-1"), step=3, rows=(ROW,))


def test_what_was_sealed_is_opened_with_the_same_key_and_nothing_of_it_shows_before():
    sealed = decode(encode(seal(BATCH, KEY)), Sealed)
    assert unseal(sealed, KEY, TokenBatch) == BATCH
    assert b"decode-1" not in sealed.box
    assert seal(BATCH, KEY) != seal(BATCH, KEY)


@pytest.mark.parametrize("place", [0, 23, 24, 39, 40, -1])
def test_one_changed_bit_anywhere_makes_it_malformed(place: int):
    box = bytearray(seal(BATCH, KEY).box)
    box[place] ^= 1
    with pytest.raises(MalformedMessage):
        unseal(Sealed(box=bytes(box)), KEY, TokenBatch)


@pytest.mark.parametrize("size", [0, 1, 24, 40, 41])
def test_what_is_cut_short_is_malformed(size: int):
    with pytest.raises(MalformedMessage):
        unseal(Sealed(box=seal(BATCH, KEY).box[:size]), KEY, TokenBatch)


def test_another_key_opens_nothing():
    with pytest.raises(MalformedMessage):
        unseal(seal(BATCH, KEY), new_seal_key(), TokenBatch)


def test_a_message_of_another_kind_is_malformed_though_the_key_fits():
    for other in (AbortRequest(request=RequestId("r"), attempt=0), ResumedTokens(source=BATCH.source, rows=())):
        with pytest.raises(MalformedMessage, match="expected TokenBatch"):
            unseal(seal(other, KEY), KEY, TokenBatch)


def test_every_process_has_another_key():
    keys = {new_seal_key() for _ in range(100)}
    assert {len(key) for key in keys} == {len(KEY)}
    assert len(keys) == 100


def test_neither_key_nor_prompt_shows_where_a_request_is_printed():
    work = SubmitRequest(
        request=RequestId("r"),
        attempt=0,
        gateway=InstanceId("gateway-1"),
        model="m",
        prompt=(31415, 92653),
        sampling=Sampling(max_tokens=8),
        seal_key=KEY,
    )
    assert repr(work) == str(work) == f"{work}" == "SubmitRequest('r', attempt=0, gateway='gateway-1')"
