"""The rules of grouping and of the planner, beyond the paper."""

from __future__ import annotations

from functools import partial
from math import inf

import numpy as np

from qlm.rules.registry import Rule
from qlm_core.planning.search import Tuning

_SNAPSHOT = "qlm_core.manager.snapshot"
_PLANNER = "qlm_core.manager.planner"

GROUPING = (
    Rule(
        name="groups-by-prompt-length",
        part="grouping",
        reason="Groups prompts by length, since in overload short ones let more requests be in time.",
        where="qlm_core.grouping:prompt_scale",
        without=lambda tokens, ttft_s: 0,
    ),
    Rule(
        name="coarse-prompt-lengths-where-lax",
        part="grouping",
        reason="Takes prompts of up to 1,024 tokens as alike where targets are lax, so that more come in order of arrival.",
        where="qlm_core.grouping:short_prompt_bits",
        without=lambda ttft_s: 8,
    ),
    Rule(
        name="groups-by-output-limit",
        part="grouping",
        reason="Groups requests by the client's limit on the output, which tells of short outputs where it is low.",
        where="qlm_core.grouping:limit_scale",
        without=lambda max_output_tokens: 4,
    ),
    Rule(
        name="group-span",
        part="grouping",
        reason="Closes a group once its arrivals, or its work, span a quarter of the target, since one due time speaks for all.",
        where="solver.grouping.span_ratio",
        without=1e6,
    ),
    Rule(
        name="small-groups-while-little-waits",
        part="grouping",
        reason="Keeps groups so small that what waits makes four for each instance, so that a fleet is kept evenly busy.",
        where="qlm_core.manager.sizing:shared_out",
        without=lambda size, waiting, serving: size,
    ),
    Rule(
        name="halving",
        part="grouping",
        reason="Halves groups that are twice too large once a rush is over, so that idle instances get a part.",
        where="qlm_core.manager.machine:split_large",
        without=lambda groups, agents, grouper, size_of: iter(()),
    ),
    Rule(
        name="rests-are-lax",
        part="grouping",
        reason="Gives outputs that owe no more than a first token an hour for their rest, so that nothing waits for them.",
        where="qlm_core.model:REST_S",
        without=0.0,
    ),
)

PLANNER = (
    Rule(
        name="spread-popular-models",
        part="planner",
        reason="Has another instance wake a model whose first tokens would be late, before they are.",
        where="qlm_core.manager.residents:Residents.spread",
        without=lambda residents, roster, estimators, *, now_s: [],
    ),
    Rule(
        name="no-rate-from-a-burst",
        part="planner",
        reason="Counts on no arrivals for that before they have gone on for ten seconds.",
        where="qlm_core.manager.residents:AGE_S",
        without=0.0,
    ),
    Rule(
        name="first-tokens-press",
        part="planner",
        reason="Plans first tokens apart from outputs where no more is promised and that is due within two minutes.",
        where="qlm_core.grouping:GroupKey.presses",
        without=property(lambda key: False),
    ),
    Rule(
        name="rest-share",
        part="planner",
        reason="Has plans wait for a tenth of such outputs, as executors let them give way late.",
        where="solver.objective.rest_share",
        without=0.0,
    ),
    Rule(
        name="aim",
        part="planner",
        reason="Aims at nine tenths of each target, since a plan that is in time to the second is late every other time.",
        where="solver.objective.aim",
        without=1.0,
    ),
    Rule(
        name="paced-batches",
        part="planner",
        reason="Plans with the batch in which a promised pace is kept, as agents let no more run together.",
        where="qlm_core.manager.estimators:Estimators._paced_batch",
        without=staticmethod(lambda profile, pace_s, prompt, output, variation: inf),
    ),
    Rule(
        name="pace-aim",
        part="planner",
        reason="Aims at nine tenths of a promised pace, in plans and batches: iterations vary.",
        where="qlm_core.profile:PACE_AIM",
        also=("qlm_core.executor.tempo", "qlm_core.manager.estimators"),
        without=1.0,
    ),
    Rule(
        name="ramp-of-lengths",
        part="planner",
        reason="Widens the step from in time to late by the spread of output lengths, p10 to p90.",
        where=f"{_SNAPSHOT}:_SPREAD",
        without=0.0,
    ),
    Rule(
        name="ramp-of-what-may-arrive",
        part="planner",
        reason="Widens that step by the time that is left, since what arrives until then may have to go first.",
        where=f"{_SNAPSHOT}:_unforeseen_s",
        without=np.zeros_like,
    ),
    Rule(
        name="early-starts",
        part="planner",
        reason="Has requests with a promised end start as early as a typical output needs.",
        where=f"{_SNAPSHOT}:_early_s",
        without=lambda key, output_s: 0.0,
    ),
    Rule(
        name="early-ramp",
        part="planner",
        reason="Widens lateness of a promised end as far as an output needs that one in ten exceeds.",
        where="qlm_core.manager.estimators:_LONG",
        without=0.7,
    ),
    Rule(
        name="free-room-absorbs",
        part="planner",
        reason="Credits an instance with the requests that its free room takes at once.",
        where=f"{_SNAPSHOT}:_absorbed_s",
        without=lambda places, place_s: 0.0,
    ),
    Rule(
        name="first-come-hair",
        part="planner",
        reason="Weighs older groups a hair more, so that those alike in all else go first come, first served.",
        where=f"{_SNAPSHOT}:_first_come",
        without=lambda age, rank: np.zeros_like(age),
    ),
    Rule(
        name="started-groups-stay",
        part="planner",
        reason="Makes it four times as dear to move what is left of a group that has started, for its cached prefixes.",
        where=f"{_SNAPSHOT}:_STARTED_MOVE",
        without=1.0,
    ),
    Rule(
        name="moves-cost",
        part="planner",
        reason="Charges a plan for each request that leaves its queue, so that plans do not churn.",
        where="solver.objective.move",
        without=0.0,
    ),
    Rule(
        name="swaps-cost",
        part="planner",
        reason="Charges a second of swapping by itself, beside the time that it takes from requests.",
        where="solver.objective.swap",
        without=0.0,
    ),
    Rule(
        name="lateness-costs-by-the-second",
        part="planner",
        reason="Charges each second of lateness beside the miss, so that who is late already is not put off for ever.",
        where="solver.objective.tardiness",
        without=0.0,
    ),
    Rule(
        name="completion-breaks-ties",
        part="planner",
        reason="Charges each second until a request ends, so that among plans in time the quick one is taken.",
        where="solver.objective.completion",
        without=0.0,
    ),
    Rule(
        name="seat-at-once",
        part="planner",
        reason="Seats a new group on an idle instance that takes all of it, without planning.",
        where=f"{_PLANNER}:Planner.seats_at_once",
        without=False,
    ),
    Rule(
        name="seat-where-done-first",
        part="planner",
        reason="Takes the idle instance that is done with the group first, by its profile and batch.",
        where="qlm_core.manager.estimators:Estimators.finish_s",
        without=lambda estimators, profile, key, *, batch, context_tokens, now_s: float(batch),
    ),
    Rule(
        name="contenders",
        part="planner",
        reason="Has repair look at those instances alone that can matter to new groups.",
        where=f"{_PLANNER}:contenders",
        without=lambda groups, agents, *, new: list(agents),
        bears="speed",
    ),
    Rule(
        name="regret-insertion",
        part="planner",
        reason="Inserts a few new groups in the order of what each loses if its best queue is taken.",
        where="qlm_core.planning.insertion:_REGRET_GROUPS",
        without=0,
    ),
    Rule(
        name="levelling",
        part="planner",
        reason="Puts ends of long queues behind shorter ones where many groups together pay for a swap.",
        where=f"{_PLANNER}:level",
        without=lambda problem, plan, queues: plan,
    ),
    Rule(
        name="search",
        part="planner",
        reason="Improves plans by annealing and by ruin and recreate, beyond insertion.",
        where="qlm_core.planning.search:_Run._cycles",
        without=lambda run, *, warm: None,
    ),
    Rule(
        name="ruin-and-recreate",
        part="planner",
        reason="Alternates annealing with ruin and recreate on plans of up to 64 groups.",
        where="qlm_core.planning.search:Tuning",
        without=partial(Tuning, ruin_groups=0),
    ),
    Rule(
        name="cool-start",
        part="planner",
        reason="Begins the search cooler on a plan that was good a moment ago, to refine it rather than forget it.",
        where="qlm_core.planning.search:Tuning",
        without=partial(Tuning, warm=0.1),
    ),
    Rule(
        name="plan-on-predicted-misses",
        part="planner",
        reason="Plans soon when a new request's p90 lies beyond its target.",
        where=f"{_PLANNER}:Planner.predicted",
        without=lambda planner, request, estimate, *, now_s: None,
    ),
    Rule(
        name="no-solve-where-nothing-is-hindered",
        part="planner",
        reason="Asks for no solve where a bound proves that the plan in force is the best.",
        where=f"{_PLANNER}:unhindered",
        without=lambda problem: float("-inf"),
        bears="speed",
    ),
)
