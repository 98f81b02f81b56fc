"""One open request as the ledger holds it."""

from __future__ import annotations

from dataclasses import dataclass

from qlm_core.ledger.effects import EndRecord
from qlm_core.messages import AttemptEnded
from qlm_core.model import AgentId, Estimate, Phase, RequestMeta
from qlm_core.resume import Resume, ResumedBy


@dataclass(slots=True, kw_only=True)
class Row:
    """The state of one open request. Only the ledger changes it.

    Attributes:
        number: counts submissions, so later rows have higher numbers.
        attempt: number of the current attempt, or of the last one while waiting.
        agent: who holds the current attempt; None while waiting.
        chunks: chunks received of the current attempt.
        produced_tokens: output of earlier attempts that the current one continues.
        attempt_tokens: output of the current attempt.
        losses: attempts that ended because an engine or agent was lost.
        errors: attempts that an engine answered with an error while it served others.
        turned_away: how often engines had no room for it.
        pulled_s: when it was first granted.
        last_token_s: when the last token of what the client has came.
        pause_s: the longest time between two of its tokens.
        counted_prompt_tokens: tokens of the prompt as an engine told their ids, 0 if none did.
        has_ids: whether the token ids of all output so far are known.
        rest_until_s: when it may be granted again; None unless it rests.
        rested_by: the agent that gave it back to rest.
        restored: it was read back from the store, and nobody has been granted it since.
    """

    meta: RequestMeta
    number: int
    durable: bool
    resume: Resume
    watched: bool
    expires_s: float
    attempt: int
    phase: Phase = Phase.WAITING
    agent: AgentId | None = None
    chunks: int = 0
    produced_tokens: int = 0
    attempt_tokens: int = 0
    attempts: int = 0
    losses: int = 0
    errors: int = 0
    turned_away: int = 0
    evictions: int = 0
    pulled_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    pause_s: float = 0.0
    estimate: Estimate | None = None
    counted_prompt_tokens: int = 0
    has_ids: bool = True
    rest_until_s: float | None = None
    rested_by: AgentId | None = None
    restored: bool = False

    @property
    def resumable(self) -> bool:
        """Whether another attempt can go on after the output so far."""
        if self.resume is Resume.FROM_IDS:
            return self.has_ids
        return self.resume is Resume.FROM_TEXT

    def token_came(self, now_s: float) -> None:
        """One more token, or several at once, are on their way to the client."""
        if self.last_token_s is not None:
            self.pause_s = max(self.pause_s, now_s - self.last_token_s)
        self.last_token_s = now_s

    def begin_anew(self) -> None:
        """All output so far is void."""
        self.first_token_s = self.last_token_s = None
        self.pause_s = 0.0
        self.has_ids = True

    @property
    def output_tokens(self) -> int:
        """Output of all attempts that the client has or will have."""
        return self.produced_tokens + self.attempt_tokens

    def end_record(
        self,
        phase: Phase,
        reason: str,
        *,
        now_s: float,
        engine: AttemptEnded | None = None,
        error: str = "",
    ) -> EndRecord:
        """The terminal record, with latencies measured from arrival at the gateway."""
        arrival_s = self.meta.arrival_s
        output_tokens = self.output_tokens
        prompt_tokens = self.counted_prompt_tokens or self.meta.prompt_tokens
        if engine is not None and engine.output_tokens:
            output_tokens = self.produced_tokens + engine.output_tokens
        if engine is not None and engine.prompt_tokens > self.produced_tokens:
            # The engine saw what earlier attempts produced as part of its prompt.
            prompt_tokens = engine.prompt_tokens - self.produced_tokens
        ttft_s = tpot_s = None
        if self.first_token_s is not None:
            ttft_s = self.first_token_s - arrival_s
            if output_tokens > 1:
                tpot_s = (now_s - self.first_token_s) / (output_tokens - 1)
        e2e_s = now_s - arrival_s
        # An answer without a single token is in time when its end is.
        attained = phase is Phase.FINISHED and self.meta.slo.met_by(
            ttft_s=e2e_s if ttft_s is None else ttft_s, tpot_s=tpot_s, e2e_s=e2e_s
        )
        return EndRecord(
            phase=phase,
            reason=reason,
            error=error,
            error_status=engine.error_status if engine is not None else 0,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            queue_s=None if self.pulled_s is None else self.pulled_s - arrival_s,
            ttft_s=ttft_s,
            tpot_s=tpot_s,
            pause_s=None if tpot_s is None else self.pause_s,
            e2e_s=e2e_s,
            attained=attained,
            attempts=self.attempts,
            evictions=self.evictions,
            estimate=self.estimate,
            closing=engine.closing if engine is not None else b"",
            resumed_by=engine.resumed_by if engine is not None else ResumedBy.NOTHING,
        )
