import math

import pytest
from msgspec.structs import replace

from services.gateway.fields import Integer, Number
from services.gateway.supported import COMPLETION_FIELDS
from shared.messages.handoff import KvHandle
from shared.messages.requests import SubmitRequest
from shared.policy.soundness import unsound, unsound_kv
from shared.specs.ids import BlockId, InstanceId, RequestId
from shared.specs.sampling import Sampling

VOCABULARY = 100
PLAIN = Sampling(max_tokens=8)


def work(
    sampling: Sampling = PLAIN,
    prompt: tuple[int, ...] = (0, 99),
    generated: tuple[int, ...] = (),
    seal_key: bytes = bytes(32),
) -> SubmitRequest:
    return SubmitRequest(
        request=RequestId("r"),
        attempt=0,
        gateway=InstanceId("gateway-1"),
        model="m",
        prompt=prompt,
        generated=generated,
        sampling=sampling,
        seal_key=seal_key,
    )


def refused(*args, **kwargs) -> str:
    refusal = unsound(work(*args, **kwargs), VOCABULARY)
    return "" if refusal is None else f"{refusal.reason}: {refusal.message}"


def test_what_a_gateway_lets_through_is_sound_up_to_the_ends_of_every_range():
    for name, field in COMPLETION_FIELDS.items():
        if name in Sampling.__struct_fields__ and isinstance(field, Integer | Number):
            least = math.ulp(0.0) if isinstance(field, Number) and field.above_least else max(field.least, 0)
            for value in (least, field.most):
                assert not refused(replace(PLAIN, **{name: value})), (name, value)
    assert not refused(replace(PLAIN, seed=2**63 - 1, logit_bias=((0, 100.0), (99, -100.0)) * 512))
    assert not refused(replace(PLAIN, stop_token_ids=(*range(64), VOCABULARY + 7)))
    assert not refused(PLAIN, generated=(0, 99) * 3)


@pytest.mark.parametrize("token", [-1, -(10**9), VOCABULARY, 2**62])
def test_a_token_id_outside_the_vocabulary_is_refused_wherever_it_is(token: int):
    assert f"token id {token} is outside the vocabulary of 100" in refused(prompt=(1, token, 2))
    assert f"token id {token}" in refused(generated=(1, token))
    assert f"token id {token}" in refused(replace(PLAIN, logit_bias=((1, 0.5), (token, 0.5))))


@pytest.mark.parametrize("token", [-1, 2**31, 2**62])
def test_a_stop_token_is_refused_only_if_it_is_no_token_id_at_all(token: int):
    assert refused(replace(PLAIN, stop_token_ids=(token,))).startswith("invalid: token id")


def test_there_is_something_to_go_on_from_and_something_to_do():
    assert "key to seal" in refused(seal_key=b"")
    assert "key to seal" in refused(seal_key=bytes(31))
    assert refused(prompt=()) == "invalid: its prompt is empty"
    assert "max_tokens is -5" in refused(replace(PLAIN, max_tokens=-5))
    assert "max_tokens is 0" in refused(replace(PLAIN, max_tokens=0))
    assert "8 tokens are there" in refused(generated=(1,) * 8)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("seed", (-1, 2**63)),
        ("temperature", (-0.1, 2.1, 1e308, -math.inf, math.inf, math.nan)),
        ("top_p", (-0.1, 1.1, math.nan)),
        ("top_k", (-1, 2**40)),
        ("min_p", (-0.1, 1.1, math.nan)),
        ("presence_penalty", (-3.0, 1e308, -math.inf)),
        ("frequency_penalty", (3.0, -1e308, math.nan)),
        ("repetition_penalty", (0.0, -1.0, 11.0, math.nan)),
        ("min_tokens", (-1, 2**40)),
        ("logprobs", (-1, 21, 2**40)),
        ("logit_bias", (((1, 101.0),), ((1, -math.inf),), ((1, math.nan),), ((1, 1.0),) * 1025)),
        ("stop_token_ids", ((1,) * 1025,)),
    ],
)
def test_sampling_that_no_gateway_would_ask_for_is_refused(name: str, values: tuple[object, ...]):
    assert all(refused(replace(PLAIN, **{name: value})).startswith("invalid: ") for value in values)


def test_kv_belongs_to_the_context_that_it_is_for():
    kv = KvHandle(
        source=InstanceId("prefill-1"),
        blocks=(BlockId(3), BlockId(4)),
        tokens=5,
        lease_seconds=1.0,
        first_token=99,
    )
    five = work(prompt=(1, 2, 3), generated=(4, 5))

    def fits(kv: KvHandle) -> bool:
        return unsound_kv(kv, five, VOCABULARY, block_tokens=4) is None

    assert fits(kv)
    assert not fits(replace(kv, tokens=6))
    assert not fits(replace(kv, blocks=kv.blocks[:1]))
    assert not fits(replace(kv, blocks=(*kv.blocks, BlockId(5))))
    assert not fits(replace(kv, first_token=VOCABULARY))
    assert not fits(replace(kv, first_token=-1))
