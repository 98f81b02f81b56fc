"""What the page is told: bounded, without what has not changed, and of a tenant nothing of others."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from gateway.page.digest import (
    GONE_S,
    PAST_S,
    Digester,
    batch_of,
    changes,
    groups_max,
    of_tenant,
    state_of,
)
from tests.page.views import Json, agent, group, large, view


def applied(before: Json, said: Json) -> Json:
    """What a page makes of a change (source/src/feed.ts)."""
    rest = {name: value for name, value in said.items() if name not in ("agents", "gone")}
    agents = {**before.get("agents", {}), **said.get("agents", {})}
    for id in said.get("gone", ()):
        del agents[id]
    return before | rest | {"agents": agents}


def test_instants_are_of_the_gateways_clock_and_names_are_numbers() -> None:
    digester = Digester()
    said = digester.digest(
        view(agent("a", group(7, start_s=2.5, swap_s=1.5, expected_late=2))), 100.0
    )
    [shown] = said["agents"]["a"]["queue"]
    tiny, interactive = said["models"].index("tiny"), said["classes_set"].index("interactive")
    assert shown == [7, tiny, interactive, 5, 0, 102.5, 104.5, 1.5, 120.0, 2, "req-7"]
    assert said["late"] == said["agents"]["a"]["late"] == 2
    assert said["plan"]["at"] == 98.5
    assert "age_s" not in said["plan"]


def test_what_stays_the_same_is_not_said_again() -> None:
    digester = Digester()
    before = digester.digest(view(agent("a", group(1)), agent("b")), 10.0)
    after = digester.digest(view(agent("a", group(1), running=9), agent("b"), plan=None), 10.0)
    said = changes(before, after)
    assert list(said["agents"]) == ["a"]
    assert sorted(said) == ["agents", "plan"]


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(0, 3), max_size=3), max_size=6))
def test_changes_make_the_same_of_what_was_known(fleets: list[dict[str, int]]) -> None:
    digester, known, held = Digester(), Json(), Json()
    for number, fleet in enumerate(fleets):
        agents = [agent(id, running=running) for id, running in fleet.items()]
        # Long enough apart that who went is forgotten.
        digest = digester.digest(view(*agents), 1000.0 * number)
        known = applied(known, changes(held, digest))
        held = digest
        assert known == digest


def test_an_instance_that_went_is_shown_for_a_while() -> None:
    digester = Digester()
    digester.digest(view(agent("a", group(1)), agent("b")), 0.0)
    said = digester.digest(view(agent("b")), 5.0)
    gone = said["agents"]["a"]
    assert (gone["state"], gone["since"], gone["queue"], gone["running"]) == ("gone", 0.0, [], 0)
    assert gone["past"][-1] == [0.0, -1, "gone"]
    back = digester.digest(view(agent("a"), agent("b")), 6.0)
    assert back["agents"]["a"]["state"] == "ready"
    digester.digest(view(agent("b")), 7.0)
    assert list(digester.digest(view(agent("b")), 7.0 + GONE_S)["agents"]) == ["b"]


def test_the_past_has_its_changes_and_ends() -> None:
    digester = Digester()
    digester.digest(view(agent("a")), 0.0)
    digester.digest(view(agent("a", swapping_to="other", awake_model=None)), 10.0)
    said = digester.digest(view(agent("a", awake_model="other")), 15.0)
    tiny, other = said["models"].index("tiny"), said["models"].index("other")
    past = said["agents"]["a"]["past"]
    assert past == [[0.0, tiny, "ready"], [10.0, other, "swapping"], [15.0, other, "ready"]]
    later = digester.digest(view(agent("a", awake_model="other")), 16.0 + PAST_S)
    assert later["agents"]["a"]["past"] == [[15.0, other, "ready"]]


def test_states_have_one_word_each() -> None:
    one = agent("a")
    assert state_of(one) == "ready"
    assert state_of(one | {"ready": False}) == "down"
    assert state_of(one | {"draining": True}) == "draining"
    assert state_of(one | {"swapping_to": "other"}) == "swapping"
    assert state_of(one | {"connected": False}) == "away"


def test_a_tenant_is_told_of_nobodys_requests() -> None:
    one = agent("a", group(1), running=77, held=88, tokens_per_s=99)
    said = of_tenant(Digester().digest(view(one), 0.0), {"waiting": 1})
    assert said["yours"] == {"waiting": 1}
    assert said["agents"]["a"]["queue"] == []
    text = json.dumps(said)
    assert not any(word in text for word in ("req-1", "77", "88", "99", "objective", "held"))


def test_of_a_batch_nothing_is_told_that_its_client_wrote() -> None:
    batch = dict.fromkeys(("id", "status", "endpoint", "model", "created_at", "expires_at"), "x")
    batch |= {"completed_at": None, "request_counts": {}, "metadata": {"a": "secret"}, "qlm": None}
    assert "secret" not in json.dumps(batch_of(batch))


def test_a_large_fleet_stays_small() -> None:
    assert groups_max(3) == 60
    assert groups_max(200) == 12
    assert groups_max(100_000) == 8
    said = Digester().digest(large(200, 10_000), 0.0)
    assert len(json.dumps(said, separators=(",", ":"))) < 300_000
