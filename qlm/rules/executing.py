"""The rules of the executor, beyond the paper."""

from __future__ import annotations

from math import inf
from typing import Any

from qlm.rules.registry import Rule
from qlm_core.executor.batch import NO_ROOM

_ATTEMPTS = "qlm_core.executor.attempts"
_BATCH = "qlm_core.executor.batch"
_URGENCY = "qlm_core.executor.urgency"
_RESERVE = "qlm_core.executor.reserve"
_TURNS = "qlm_core.executor.turns"
_READING = "qlm_core.executor.reading"


def _as_expected(item: Any) -> int:
    """Tokens still to come, if every output ended at its expectation."""
    limit = item.ref.max_output_tokens - item.ref.produced_tokens - item.produced
    left: int = min(item.expected_tokens - item.produced, limit)
    return max(1, left)


EXECUTOR = (
    Rule(
        name="finish-what-was-started",
        part="executor",
        reason="Finishes a group that was started before a swap, as long as the new head can wait.",
        where="qlm_core.executor.window:Window.group",
        without=lambda window, id: None,
    ),
    Rule(
        name="stay-while-it-pays",
        part="executor",
        reason="Stays on a model while leaving it gives up more than it saves: targets shorter than the way there and back.",
        where=f"{_TURNS}:Turns._pays",
        without=lambda turns, head: True,
    ),
    Rule(
        name="prompts-let-paces-be",
        part="executor",
        reason="Keeps prompts back that can wait, where they would slow outputs down below a promised pace.",
        where="qlm_core.executor.machine:disturbs",
        without=lambda ref, batch, may_pause_s, *, now_s: False,
    ),
    Rule(
        name="turns-before-paces",
        part="executor",
        reason="Keeps no prompt back while another model waits for its turn, since the turn would be lost.",
        where=f"{_TURNS}:Turns.others_wait",
        without=lambda turns: False,
    ),
    Rule(
        name="due-now-before-paces",
        part="executor",
        reason="Keeps no prompt back whose first token is due within two seconds.",
        where="qlm_core.executor.disturbance:WAITS_S",
        without=0.0,
    ),
    Rule(
        name="patience",
        part="executor",
        reason="Leaves a model in any case once somebody is late by a whole target, as nobody knows what is awake elsewhere.",
        where=f"{_TURNS}:PATIENCE",
        without=inf,
    ),
    Rule(
        name="worth-staying",
        part="executor",
        reason="Stays for no less than a quarter of a request's weight, since arrivals fade.",
        where=f"{_TURNS}:WORTH_STAYING",
        without=0.0,
    ),
    Rule(
        name="cut-for-turns",
        part="executor",
        reason="Cuts outputs that may pause at once for another model, if somebody due within minutes can be in time there.",
        where=f"{_TURNS}:Turns._somebody_presses",
        without=lambda turns, head: False,
    ),
    Rule(
        name="turn-is-kept",
        part="executor",
        reason="Gives the turn to the model for which outputs were cut, though plans put these first again.",
        where=f"{_TURNS}:Turns.next",
        without=lambda turns, *, emptying: None,
    ),
    Rule(
        name="longer-than-expected",
        part="executor",
        reason="Allows an output that rests half as much time again as is expected, since lengths vary as much as they are long.",
        where=f"{_ATTEMPTS}:_LONGER",
        without=1.0,
    ),
    Rule(
        name="batch-keeps-the-pace",
        part="executor",
        reason="Bounds the batch so that everybody's promised pace is kept.",
        where="qlm_core.executor.tempo:Tempo.slots",
        without=lambda tempo, charged_tokens: inf,
    ),
    Rule(
        name="cut-drains",
        part="executor",
        reason="Cuts a drain before a swap that takes more than 20 s by eviction.",
        where="executor.drain_s_max",
        without=1e6,
    ),
    Rule(
        name="evict-margin",
        part="executor",
        reason="Evicts three seconds before a predicted miss, as predictions err by seconds.",
        where="executor.evict_margin_s",
        without=0.25,
    ),
    Rule(
        name="evictions-bounded",
        part="executor",
        reason="Leaves a request alone that was evicted four times, so that each ends some time.",
        where="executor.evictions_max",
        without=1_000,
    ),
    Rule(
        name="room-comes-by-itself",
        part="executor",
        reason="Evicts nobody for whom room comes free in time by itself.",
        where=f"{_URGENCY}:_Releases.free_at",
        without=lambda releases, slots, kv_tokens: inf,
    ),
    Rule(
        name="long-outputs-go-on",
        part="executor",
        reason="Expects an output near its expectation to go on for half of that, so that room does not seem near.",
        where=f"{_BATCH}:InFlight.remaining_tokens",
        without=property(_as_expected),
    ),
    Rule(
        name="give-way-at-once-when-too-few",
        part="executor",
        reason="Has laxer work give way at once when more would be late than the last moment can save.",
        where=f"{_URGENCY}:saves_too_few",
        without=lambda late, evictable: False,
    ),
    Rule(
        name="paced-outputs-give-last",
        part="executor",
        reason="Evicts begun outputs last of which more is promised, since a pause costs them their target.",
        where=f"{_URGENCY}:keeps_a_pace",
        without=lambda item: False,
    ),
    Rule(
        name="cheapest-gives-first",
        part="executor",
        reason="Evicts within a class whoever has least to compute again.",
        where=f"{_URGENCY}:cost_to_resume",
        without=lambda item: 0,
    ),
    Rule(
        name="full-cache-evicts",
        part="executor",
        reason="Evicts laxer work itself when the KV cache overflows, before the engine preempts whom it likes.",
        where="qlm_core.executor.machine:overflow",
        without=lambda batch, may_evict: [],
    ),
    Rule(
        name="output-share",
        part="executor",
        reason="Counts three tenths of an expected output when a request is pulled, so that first tokens come earlier.",
        where="executor.output_share",
        without=1.0,
    ),
    Rule(
        name="kv-headroom",
        part="executor",
        reason="Keeps a twentieth of the KV cache free, as outputs are longer than expected.",
        where="executor.kv_headroom",
        without=0.0,
    ),
    Rule(
        name="pull-ahead",
        part="executor",
        reason="Pulls two requests of a class beyond the room, to hide the round trip of a pull.",
        where="executor.pull_ahead",
        without=0,
    ),
    Rule(
        name="slots-kept-free",
        part="executor",
        reason="Keeps slots free of lax work for requests whose first token is promised sooner than an eviction takes.",
        where=f"{_RESERVE}:Uses.slots",
        without=lambda uses, now_s: 0,
    ),
    Rule(
        name="a-quarter-kept-at-most",
        part="executor",
        reason="Keeps a quarter of an engine's slots free at most.",
        where=f"{_RESERVE}:_SHARE_MAX",
        without=1.0,
    ),
    Rule(
        name="kept-slots-stay-kept",
        part="executor",
        reason="Gives a kept slot up only once it is used clearly less than when it was taken.",
        where=f"{_RESERVE}:_STILL",
        without=1.0,
    ),
    Rule(
        name="lax-work-yields-to-prompt-requests",
        part="executor",
        reason="Has lax work give up a slot to each prompt request as it arrives.",
        where=f"{_RESERVE}:Reserve.givers",
        without=lambda reserve, head: [],
    ),
    Rule(
        name="planned-before-stays",
        part="executor",
        reason="Evicts no laxer work that the plan puts before the head.",
        where="qlm_core.executor.relief:Relief._planned_before",
        without=lambda relief, head, laxity_s: {},
    ),
    Rule(
        name="rests-give-way-to-all",
        part="executor",
        reason="Evicts outputs that owe nothing more for first tokens of any class.",
        where=f"{_BATCH}:InFlight.laxity_s",
        without=property(lambda item: item.class_ttft_s),
    ),
    Rule(
        name="rests-let-first-tokens-pass",
        part="executor",
        reason="Pulls first tokens before begun outputs once half of their target is left.",
        where=f"{_ATTEMPTS}:Attempts.pauses_until_s",
        without=lambda attempts, slo_class: -inf,
    ),
    Rule(
        name="engines-read-what-they-are-given",
        part="executor",
        reason="Hands an engine an iteration's worth of prompts ahead, since it is told their order once.",
        where=f"{_READING}:Reading.takes",
        without=lambda reading, place_s: True,
    ),
    Rule(
        name="late-last",
        part="executor",
        reason="Starts those of a class first that can be in time, since all would be late by what those before them are late.",
        where=f"{_READING}:Reading.in_time",
        without=lambda reading, ref, now_s: True,
    ),
    Rule(
        name="first-tokens-with-caution",
        part="executor",
        reason="Allows a first token a quarter more than the profile says, since engines decode besides.",
        where=f"{_READING}:CAUTION",
        without=1.0,
    ),
    Rule(
        name="engines-go-by-due-time",
        part="executor",
        reason="Tells engines to compute first and preempt last whoever is due first.",
        where=f"{_ATTEMPTS}:engine_priority",
        without=lambda place_s: 0,
    ),
    Rule(
        name="strictest-starts-first",
        part="executor",
        reason="Starts what waits here by class and due time, whatever the plan was when it was pulled.",
        where=f"{_BATCH}:Batch.in_line",
        without=lambda batch, now_s: [*batch.held.values(), *batch.pulling.values()],
    ),
    Rule(
        name="room-kept-for-what-is-on-its-way",
        part="executor",
        reason="Keeps laxer requests from taking what was freed for one whose payload is on its way.",
        where="qlm_core.executor.machine:stricter",
        without=lambda items, than: NO_ROOM,
    ),
    Rule(
        name="warm-hints",
        part="executor",
        reason="Tells the engine which models come next, so that they are loaded ahead.",
        where="qlm_core.executor.models:Models.hints",
        without=lambda models, order: [],
    ),
)
