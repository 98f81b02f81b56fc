"""Groups: who joins whom, in which order members are pulled, and when a group closes."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from qlm_core.grouping import LIMIT_SCALES, PROMPT_ALONE, Grouper, GroupKey
from qlm_core.model import AgentId, GatewayId, ModelName, RequestId, RequestMeta, Slo


def request(
    id: str, *, model: str = "m", ttft_s: float = 20.0, prompt: int = 100, at_s: float = 0.0
) -> RequestMeta:
    """A request; its class follows from its target."""
    return RequestMeta(
        id=RequestId(id),
        gateway=GatewayId("g"),
        model=ModelName(model),
        slo_class=f"class-{ttft_s}",
        slo=Slo(ttft_s=ttft_s),
        prompt_tokens=prompt,
        max_output_tokens=100,
        arrival_s=at_s,
    )


def grouper(span_ratio: float = 0.25) -> Grouper:
    """A grouper without much of a limit."""
    return Grouper(span_ratio=span_ratio, requests_max=1000)


def test_like_requests_share_a_group_and_unlike_ones_do_not() -> None:
    make = grouper()
    first, new = make.place(request("a"), size_max=10)
    assert new
    assert make.place(request("b"), size_max=10) == (first, False)
    for other in (
        request("c", model="n"),
        request("d", ttft_s=60.0),
        request("e", prompt=3000),
    ):
        group, new = make.place(other, size_max=10)
        assert new
        assert group is not first


def test_a_full_group_closes_and_another_opens() -> None:
    make = grouper()
    groups = [make.place(request(str(n)), size_max=3)[0] for n in range(7)]
    assert [group.waiting for group in (groups[0], groups[3], groups[6])] == [3, 3, 1]
    assert groups[0].closed
    assert not groups[6].closed


def test_nobody_joins_a_group_while_each_request_is_placed_by_itself() -> None:
    make = grouper()
    first, _ = make.place(request("a"), size_max=0)
    first.pull(request("a").id, AgentId("a"))
    second, new = make.place(request("b"), size_max=0)
    assert new
    assert second is not first
    assert make.place(request("c"), size_max=2) == (second, False)


def test_a_group_spans_only_a_share_of_its_slo() -> None:
    make = grouper(span_ratio=0.25)
    first, _ = make.place(request("a", at_s=0.0), size_max=100)
    assert make.place(request("b", at_s=5.0), size_max=100)[0] is first
    assert make.place(request("c", at_s=5.1), size_max=100)[0] is not first


def test_an_evicted_member_stands_ahead_of_those_that_never_ran() -> None:
    make = grouper()
    group = make.place(request("a"), size_max=10)[0]
    for id in "bc":
        make.place(request(id), size_max=10)
    group.pull(RequestId("a"), AgentId("x"))
    group.pull(RequestId("b"), AgentId("x"))
    group.give_back(request("b"))
    assert [member.id for member in group.members()] == ["b", "c"]
    assert group.started
    group.drop(RequestId("b"))
    group.drop(RequestId("c"))
    assert not group.empty
    group.drop(RequestId("a"))
    assert group.empty


@given(st.integers(1, 200_000))
def test_prompts_are_grouped_by_scale(prompt: int) -> None:
    scale = GroupKey.of(request("a", prompt=prompt)).prompt_scale
    if scale == 0:
        assert prompt <= 256
    else:
        assert 256 << (scale - 1) < prompt <= 256 << scale


@given(st.integers(1, 200_000))
def test_low_limits_on_the_output_are_grouped_by_scale(limit: int) -> None:
    meta = replace(request("a"), max_output_tokens=limit)
    scale = GroupKey.of(meta).limit_scale
    most = 1 if scale == PROMPT_ALONE else 64 << scale
    assert limit <= most or scale == LIMIT_SCALES
    assert scale in (0, PROMPT_ALONE) or limit > 64 << (scale - 1)


@given(st.lists(st.tuples(st.sampled_from("mn"), st.sampled_from([20.0, 60.0])), max_size=60))
def test_no_request_is_lost_or_doubled(arrivals: list[tuple[str, float]]) -> None:
    make = grouper()
    groups = []
    for number, (model, ttft_s) in enumerate(arrivals):
        group, new = make.place(request(str(number), model=model, ttft_s=ttft_s), size_max=5)
        if new:
            groups.append(group)
    members = [member.id for group in groups for member in group.members()]
    assert sorted(members, key=int) == [str(number) for number in range(len(arrivals))]
    assert all(group.waiting <= 5 for group in groups)


def begun(group_request: RequestMeta, tokens: int = 5) -> RequestMeta:
    """The same, evicted after so many tokens."""
    return replace(group_request, produced_tokens=tokens)


def test_the_rest_of_an_output_leaves_its_group_once_nothing_more_is_owed() -> None:
    make = grouper()
    home = AgentId("a")
    first, second = request("a"), request("b")
    group, _ = make.place(first, size_max=10)
    make.place(second, size_max=10)
    group.home = home
    for one in (first, second):
        group.pull(one.id, home)
    rest = make.take_back(begun(first), group, size_max=10)
    assert rest is not group
    assert rest.home == home
    assert rest.key.slo_class == group.key.slo_class
    assert rest.last_due_s > group.last_due_s + 600.0
    assert make.take_back(begun(second), group, size_max=10) is rest
    assert [one.id for one in rest.members()] == ["a", "b"]
    assert group.empty


def test_rests_are_grouped_by_where_their_cache_is_and_no_further_than_fits() -> None:
    make = grouper()
    rests = []
    for n, home in enumerate(("a", "b", "b", "b")):
        one = request(str(n))
        group, _ = make.place(one, size_max=1)
        group.home = AgentId(home)
        group.pull(one.id, AgentId(home))
        rests.append(make.take_back(begun(one), group, size_max=2))
    assert rests[1] is rests[2]
    assert len({id(rest) for rest in rests}) == 3
    assert [rest.home for rest in rests] == ["a", "b", "b", "b"]


def test_rests_of_later_requests_are_due_later() -> None:
    make = grouper()
    dues_s = []
    for n, arrival_s in enumerate((5.0, 0.0, 90.0)):
        one = replace(request(str(n)), arrival_s=arrival_s)
        group, _ = make.place(one, size_max=1)
        group.pull(one.id, AgentId("a"))
        group.home = AgentId("a")
        dues_s.append(make.take_back(begun(one), group, size_max=10).last_due_s)
    assert [due_s - dues_s[0] for due_s in dues_s] == [0.0, 0.0, 85.0]


def test_an_end_that_is_due_before_the_first_token_says_when_a_request_has_to_start() -> None:
    one = replace(request("a"), slo=Slo(ttft_s=600.0, e2e_s=20.0))
    group, _ = grouper().place(one, size_max=10)
    assert group.key.ttft_s == 20.0
    assert group.last_due_s == one.arrival_s + 20.0


def test_who_was_promised_more_or_has_no_token_yet_goes_back_to_its_group() -> None:
    make = grouper()
    waiting = request("a")
    promised = replace(request("b"), slo=Slo(ttft_s=20.0, e2e_s=100.0))
    for one, back in ((waiting, waiting), (promised, begun(promised))):
        group, _ = make.place(one, size_max=10)
        group.pull(one.id, AgentId("a"))
        assert make.take_back(back, group, size_max=10) is group
        assert group.first() == back


def test_a_rest_that_is_announced_anew_is_not_due_with_new_requests() -> None:
    """As after a restart of the solver."""
    make = grouper()
    fresh, _ = make.place(request("a"), size_max=10)
    rest, new = make.place(begun(request("b")), size_max=10)
    assert new
    assert rest.last_due_s > fresh.last_due_s + 600.0


def test_those_promised_another_pace_are_another_group() -> None:
    slow, fast, none = (
        replace(request("a"), slo=Slo(ttft_s=20.0, tpot_s=tpot_s)) for tpot_s in (0.2, 0.05, None)
    )
    keys = [GroupKey.of(one) for one in (slow, fast, none)]
    assert len(dict.fromkeys(keys)) == 3
    assert len(dict.fromkeys(key.kind for key in keys)) == 3


def test_where_the_target_is_lax_prompts_of_some_hundred_tokens_share_a_group() -> None:
    make = grouper()
    for ttft_s, shared in ((60.0, False), (600.0, True)):
        short, _ = make.place(request(f"a-{ttft_s}", ttft_s=ttft_s, prompt=200), size_max=10)
        other, _ = make.place(request(f"b-{ttft_s}", ttft_s=ttft_s, prompt=900), size_max=10)
        assert (other is short) == shared
