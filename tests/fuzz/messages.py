"""Protobuf messages with anything in them that their types allow, and bytes that are none."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

from protos.wire import bounds
from qlm_core.endpoint import Endpoint
from tests.fuzz.bodies import CANARY, MODEL, bodies

FD = FieldDescriptor
DEPTH_MAX = 5
NAMES = [
    "", "r", "a", "sim", "g", MODEL, "interactive", "batch-1", "127.0.0.1:1", "x" * (bounds.NAME_CHARS_MAX + 1), "\x00", "é",
    "h:99999", "\n", "rejected-saturated", "stop", "error", "9" * 5000, "0", "-1", "²", "y" * 300,
]  # fmt: skip
PEERS = ("agent_id", "gateway_id")
"""Fields that logs may repeat: who has connected. All others may hold a prompt as far as the test goes."""
floats = st.floats() | st.sampled_from([0.0, 1.0, -1.0, 1e9, 1e10, 1e-320, 1e300])


def _whole(bits: int) -> st.SearchStrategy[int]:
    most = 2**bits - 1
    return st.sampled_from([0, 1, 2, 3, 2**31 - 1, 2**31, most]).map(
        lambda value: min(value, most)
    ) | st.integers(0, most)


_BY_TYPE: dict[int, st.SearchStrategy[Any]] = {
    FD.TYPE_STRING: st.sampled_from([*NAMES, CANARY]) | st.text(max_size=6),
    FD.TYPE_BYTES: st.one_of(
        st.binary(max_size=8),
        bodies(Endpoint.COMPLETIONS),
        bodies(Endpoint.CHAT_COMPLETIONS),
        bodies(Endpoint.EMBEDDINGS),
        st.just(b"{}"),
    ),
    FD.TYPE_BOOL: st.booleans(),
    FD.TYPE_DOUBLE: floats,
    FD.TYPE_FLOAT: floats,
    FD.TYPE_UINT32: _whole(32),
    FD.TYPE_UINT64: _whole(64),
    FD.TYPE_ENUM: st.integers(0, 9),
}


@st.composite
def messages(draw: st.DrawFn, kind: Descriptor, depth: int = 0) -> Message:
    """A message of a type with arbitrary fields; of alternatives mostly one is there."""
    made = GetMessageClass(kind)()
    chosen = {
        name: draw(st.sampled_from(list(group.fields))).name
        for name, group in kind.oneofs_by_name.items()
        if draw(st.integers(0, 9))
    }
    for field in kind.fields:
        group = field.containing_oneof
        if group is not None:
            if chosen.get(group.name) == field.name:
                _fill(draw, made, field, depth)
        elif draw(st.integers(0, 4)):
            _fill(draw, made, field, depth)
    return made


def _values(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    return st.sampled_from(NAMES) if field.name in PEERS else _BY_TYPE[field.type]


def _fill(draw: st.DrawFn, made: Message, field: FieldDescriptor, depth: int) -> None:
    inner = field.message_type
    if inner is not None and inner.GetOptions().map_entry:
        for key in draw(st.lists(st.sampled_from(NAMES), max_size=2)):
            getattr(made, field.name)[key] = draw(st.integers(0, 9))
    elif inner is not None:
        if depth >= DEPTH_MAX:
            return
        if field.is_repeated:
            parts = draw(st.lists(messages(inner, depth + 1), max_size=3))
            getattr(made, field.name).extend(parts)
        else:
            getattr(made, field.name).CopyFrom(draw(messages(inner, depth + 1)))
    elif field.is_repeated:
        getattr(made, field.name).extend(draw(st.lists(_values(field), max_size=3)))
    else:
        setattr(made, field.name, draw(_values(field)))


def sent(kind: Descriptor) -> st.SearchStrategy[bytes]:
    """What comes as a message of a type: mostly one, sometimes bytes that are none."""
    whole = messages(kind).map(lambda message: message.SerializeToString())
    torn = st.tuples(whole, st.binary(max_size=4), st.integers(0, 50)).map(
        lambda parts: parts[0][: parts[2]] + parts[1]
    )
    return st.one_of(whole, whole, whole, torn, st.binary(max_size=30))
