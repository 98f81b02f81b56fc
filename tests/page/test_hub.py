"""What one viewer is told that reads slowly, and that what cannot be renewed ends nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.page.hub import Channel
from tests.page.views import Json

CLOCK: Json = {"now": 1.0}


def told(event: bytes) -> tuple[str, Json]:
    name, data = event.decode().strip().split("\n")
    return name.removeprefix("event: "), json.loads(data.removeprefix("data: "))


def digest(**values: Any) -> Json:
    return {"agents": {}} | values


def test_who_heard_the_last_step_hears_what_is_new() -> None:
    channel = Channel()
    channel.say(digest(a=1, b=1), CLOCK)
    assert told(channel.since(0)) == ("whole", digest(a=1, b=1) | CLOCK)
    channel.say(digest(a=2, b=1), {"now": 2.0})
    assert told(channel.since(1)) == ("change", {"a": 2, "now": 2.0})


@pytest.mark.parametrize("missed", [1, 2, 50])
def test_who_missed_a_step_hears_the_whole_once_and_nothing_waits(missed: int) -> None:
    channel = Channel()
    channel.say(digest(a=0), CLOCK)
    heard = channel.version
    for number in range(missed + 1):
        channel.say(digest(a=number + 1), CLOCK)
    name, said = told(channel.since(heard))
    assert (name, said["a"]) == ("whole", missed + 1)
    channel.say(digest(a=99), CLOCK)
    assert told(channel.since(channel.version - 1)) == ("change", {"a": 99} | CLOCK)


def test_the_whole_is_put_together_once_for_all_who_come() -> None:
    channel = Channel()
    channel.say(digest(a=1), CLOCK)
    assert channel.since(0) is channel.since(0)
    first = channel.since(0)
    channel.say(digest(a=1), CLOCK)
    assert channel.since(0) is not first
