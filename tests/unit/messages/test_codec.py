"""The wire format: whatever is sent arrives unchanged, and whatever else arrives is refused."""

import inspect
import math
from types import ModuleType
from typing import Any, get_type_hints

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.messages import handoff, instances, requests, tokens, work
from shared.messages.codec import MalformedMessage, decode, encode
from shared.messages.requests import AbortRequest, Accepted, SubmitRequest
from shared.messages.tokens import TokenBatch, TokenRow
from shared.specs.ids import InstanceId, RequestId
from shared.specs.record import Record
from shared.specs.sampling import Sampling


def records_of(module: ModuleType) -> list[type[Record]]:
    members = [member for _, member in inspect.getmembers(module, inspect.isclass)]
    return [cls for cls in members if issubclass(cls, Record) and cls.__module__ == module.__name__]


def packed(name: str, fields: Any) -> bytes:
    """What a peer of another version, or an enemy, could send."""
    return msgspec.msgpack.encode((name, fields))


MODULES = (handoff, instances, requests, tokens, work)
MESSAGES = [cls for module in MODULES for cls in records_of(module)]

st.register_type_strategy(int, st.integers(-(2**63), 2**64 - 1))  # what msgpack can hold
st.register_type_strategy(float, st.floats(allow_nan=False).filter(lambda number: number != math.inf))
st.register_type_strategy(str, st.text(st.characters(exclude_categories=["Cs"])))
for record in (*MESSAGES, Sampling):
    fields = {
        name: st.from_type(annotation) for name, annotation in get_type_hints(record).items() if name != "SUBJECT"
    }
    st.register_type_strategy(record, st.builds(record, **fields))


@pytest.mark.parametrize("cls", MESSAGES, ids=lambda cls: cls.__name__)
def test_every_message_arrives_as_it_was_sent(cls: type):
    @settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.from_type(cls))
    def check(message: Any) -> None:
        assert decode(encode(message), cls) == message

    check()


@settings(max_examples=300, deadline=None)
@given(st.binary())
def test_any_bytes_are_a_message_or_malformed(data: bytes):
    with pytest.raises(MalformedMessage):
        decode(data, *MESSAGES)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=3)
    | st.binary(),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), st.sampled_from([SubmitRequest, TokenBatch, instances.Beat, handoff.PullBlocks]), VALUES)
def test_a_message_with_one_forged_field_is_malformed_or_a_message_never_another_error(
    data: st.DataObject, cls: type, forged: Any
):
    name, fields = msgspec.msgpack.decode(encode(data.draw(st.from_type(cls))))
    fields[data.draw(st.integers(0, len(fields) - 1))] = forged
    try:
        message = decode(packed(name, fields), cls)
    except MalformedMessage:
        return
    assert decode(encode(message), cls) == message


def test_names_of_message_classes_are_unique():
    assert len({cls.__name__ for cls in MESSAGES}) == len(MESSAGES)


def test_the_first_of_the_expected_kinds_that_fits_is_returned():
    data = encode(Accepted(request=RequestId("r"), attempt=1))
    assert isinstance(decode(data, AbortRequest, Accepted), Accepted)


def test_a_message_of_another_kind_names_what_came_and_what_was_expected():
    data = encode(Accepted(request=RequestId("r"), attempt=1))
    with pytest.raises(MalformedMessage, match="got 'Accepted', expected AbortRequest or TokenBatch"):
        decode(data, AbortRequest, TokenBatch)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (["r"], "AbortRequest: .*at least length 2, got 1"),  # too few, and the missing one has no default
        (["r", "1"], r"Expected `int`, got `str` - at `\$\[1\]`"),
        (["r", 1.0], "Expected `int`, got `float`"),
        (["r", True], "Expected `int`, got `bool`"),
        ([b"r", 1], "Expected `str`, got `bytes`"),
        ([None, 1], "Expected `str`, got `None`"),
        ("r1", "Expected `array`, got `str`"),
        ({"request": "r", "attempt": 1}, "Expected `array`, got `object`"),
    ],
)
def test_a_wrong_field_is_malformed(fields: Any, reason: str):
    with pytest.raises(MalformedMessage, match=reason):
        decode(packed("AbortRequest", fields), AbortRequest)


@pytest.mark.parametrize(
    "row",
    [
        ["r", 1, 0, [1, "2"]],
        ["r", 1, 0, 7],
        ["r", 1, 0, [1], [[0.5]], "unheard"],
        ["r", 1, 0, [1], [["0.5"]]],
        ["r", 1, 0, [1], [[0.5, [[1, 2, 3]]]]],
        "row",
    ],
)
def test_a_wrong_value_deep_inside_is_malformed(row: Any):
    with pytest.raises(MalformedMessage):
        decode(packed("TokenBatch", ["decode-1", 0, [row]]), TokenBatch)


def test_fields_missing_at_the_end_get_their_defaults():
    data = packed("TokenRow", ["r", 1, 0, [5]])
    assert decode(data, TokenRow) == TokenRow(request=RequestId("r"), attempt=1, index=0, tokens=(5,))


def test_fields_at_the_end_that_are_not_known_yet_are_dropped():
    data = packed("AbortRequest", ["r", 1, "new in the next version", 7])
    assert decode(data, AbortRequest) == AbortRequest(request=RequestId("r"), attempt=1)


def test_old_and_new_versions_of_a_nested_class_understand_each_other():
    fields = ["r", 1, "gateway-1", "m", [1, 2], [], [16, 3]]
    submit = decode(packed("SubmitRequest", fields), SubmitRequest)
    assert submit.sampling == Sampling(max_tokens=16, seed=3)


def test_a_live_list_may_stand_where_a_tuple_is_declared():
    generated: Any = [4, 5]
    message = SubmitRequest(
        request=RequestId("r"),
        attempt=1,
        gateway=InstanceId("gateway-1"),
        model="m",
        prompt=(1, 2, 3),
        generated=generated,
        sampling=Sampling(max_tokens=8),
    )
    assert decode(encode(message), SubmitRequest).generated == (4, 5)


def test_whole_numbers_are_accepted_where_a_float_is_declared():
    sampling = decode(packed("Sampling", [8, 0, 1]), Sampling)
    assert type(sampling.temperature) is float


def test_a_row_of_a_token_batch_costs_its_request_id_and_little_more():
    row = TokenRow(request=RequestId("x" * 32), attempt=1, index=100, tokens=(5000,))
    sizes = [
        len(encode(TokenBatch(source=InstanceId("decode-01234567"), step=1, rows=(row,) * rows))) for rows in (1, 101)
    ]
    assert (sizes[1] - sizes[0]) / 100 <= 32 + 14


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_what_is_no_number_is_refused_where_one_is_declared(number: float):
    with pytest.raises(MalformedMessage, match="Sampling"):
        decode(packed("Sampling", [8, 0, number]), Sampling)
