"""What a client asked for, checked and completed: model, targets, sizes.

Both front doors bring a body and a `Wish` here and get a `Draft` or an `InvalidRequest` that names the field and the
remedy. Only what the gateway itself needs is checked; other fields of the body reach the engine unread, and what an
engine may accept is left to the engine.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from gateway import body as bd
from gateway.body import LIMIT_MAX, Json
from gateway.keys import Caller
from gateway.store import StoredRequest
from gateway.tiers import Tiers
from qlm_core.config import Config, ModelConfig
from qlm_core.config_doors import EXPLICIT
from qlm_core.endpoint import Endpoint
from qlm_core.errors import InvalidRequest, UnknownModel
from qlm_core.model import ModelName, RequestId, Slo
from qlm_core.resume import Resume, resume_of

NAME_BYTES_MAX = 256
# Of a target, or a time to live.
SECONDS_MIN = 0.001
# Left out of a fingerprint: how the answer is delivered, since the same one may be fetched either way, and the model, whose
# name is digested separately, as it may also be said beside the body.
_NOT_DIGESTED = ("model", "stream", "stream_options")
# Some clients on Windows begin a body with it, and engines overlook it.
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a client says beside the body. Times are seconds; None and "" mean not said.

    Attributes:
        ttl_s: how long it may wait and run at most; it can only shorten the configured time.
        session: a name that agents give the conversation which a request is part of: a tenant where none is said.
        trace: headers of the client's trace, for the engine.
    """

    slo_class: str = ""
    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    ttl_s: float | None = None
    tenant: str = ""
    session: str = ""
    trace: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A request that may be accepted.

    Attributes:
        body: the client's; a completion that names no limit on output has OpenAI's default added.
        prompt_tokens: estimated for text, and never more than the model's length for each prompt.
        max_output_tokens: the limit in the body, at least 1, or the model's length where there is none; 0 where nothing is
            generated.
        service_tier: the tier to report in the answer.
        fingerprint: a digest of what is asked for, "" unless one was wanted.
        caller: who asks.
        clamped: what was brought within its range, by name, with what it is now, in seconds.
        asked, kept: as of the `StoredRequest` that it becomes.
        background: its client does not wait for the answer.
    """

    endpoint: Endpoint
    body: bytes
    model: ModelName
    slo_class: str
    slo: Slo
    prompt_tokens: int
    max_output_tokens: int
    tenant: str
    service_tier: str
    ttl_s: float
    resume: Resume
    stream: bool
    include_usage: bool
    running_usage: bool
    caller: Caller
    trace: tuple[tuple[str, str], ...] = ()
    fingerprint: str = ""
    clamped: tuple[tuple[str, float], ...] = ()
    asked: bytes = b""
    kept: bool = False
    background: bool = False

    @property
    def held_bytes(self) -> int:
        """What it takes in memory while it is open."""
        return len(self.body) + len(self.asked)

    def accepted(self, time_s: float, *, key: str = "") -> StoredRequest:
        """The request that it becomes, under a new id.

        Args:
            time_s: now, as the store counts.
        """
        prefix = "resp_" if self.asked else f"{self.endpoint.id_prefix}-"
        return StoredRequest(
            id=RequestId(prefix + os.urandom(12).hex()),
            endpoint=self.endpoint,
            model=self.model,
            slo_class=self.slo_class,
            slo=self.slo,
            prompt_tokens=self.prompt_tokens,
            max_output_tokens=self.max_output_tokens,
            tenant=self.tenant,
            service_tier=self.service_tier,
            body=self.body,
            arrived_at=time_s,
            expires_at=time_s + self.ttl_s,
            trace=self.trace,
            idempotency_key=key,
            owner=self.caller.tenant,
            fingerprint=self.fingerprint,
            created_unix_s=int(time.time()),
            asked=self.asked,
            kept=self.kept,
        )


class Within:
    """Brings what a client asks for within its range, and remembers what it did.

    Attributes:
        clamped: names and what was made of them, in seconds.
    """

    def __init__(self) -> None:
        self.clamped: list[tuple[str, float]] = []

    def bring(self, name: str, value_s: float, most_s: float) -> float:
        """The nearest in range. Raises InvalidRequest for what is no number of seconds."""
        if not math.isfinite(value_s):
            raise InvalidRequest(
                f"slo.{name}", f"{value_s:g} is no time", "Give seconds.", code="invalid_slo"
            )
        nearest_s = min(max(value_s, SECONDS_MIN), most_s)
        if nearest_s != value_s:
            self.clamped.append((name, nearest_s))
        return nearest_s


class Intake:
    """Checks requests against the configuration and the models that agents announced."""

    def __init__(self, config: Config, fleet: Callable[[], tuple[ModelName, ...]]):
        self._config = config
        self._limits = config.gateway.limits
        self._fleet = fleet
        self._tiers = Tiers(config)

    def models(self, caller: Caller) -> dict[str, int]:
        """Every model that the caller may use and its longest sequence in tokens, configured or announced."""
        lengths = {name: model.max_model_len for name, model in self._config.models.items()}
        for name in self._fleet():
            lengths.setdefault(name, ModelConfig().max_model_len)
        return {name: length for name, length in lengths.items() if caller.may_use(name)}

    def draft(
        self,
        body: bytes,
        endpoint: Endpoint,
        *,
        wish: Wish,
        caller: Caller,
        model: str | None = None,
        keyed: bool = False,
    ) -> Draft:
        """Check a body and complete it.

        Args:
            caller: who asks; what they may not use is refused.
            model: overrides the body's.
            keyed: whether it comes under an idempotency key, which belongs to its content.

        Raises:
            InvalidRequest: naming the field and the remedy. UnknownModel for a model not served.
        """
        limit = self._limits.body_bytes_max
        if len(body) > limit:
            raise InvalidRequest(
                "body",
                f"it has {len(body)} bytes, at most {limit} are accepted",
                "Send a shorter prompt or raise gateway.limits.body_bytes_max.",
                code="body_too_large",
            )
        body = body.removeprefix(BYTE_ORDER_MARK)
        fields = bd.parse(body)
        name, model_len = self._model(fields.get("model") if model is None else model, caller)
        # The length of a model that only agents know is a guess, by which nothing is refused.
        known_len = model_len if name in self._config.models else None
        prompt = bd.measure_prompt(
            fields, endpoint, model_len=known_len, prompts_max=self._limits.prompts_max
        )
        body, output = bd.with_limits(body, fields, endpoint)
        stream = endpoint.generates and bd.flag(fields, "stream")
        options = fields.get("stream_options") if endpoint.generates else None
        if options is not None and not isinstance(options, dict):
            raise InvalidRequest("stream_options", "must be an object", "Leave it out or fix it.")
        within = Within()
        slo_class, slo, tier = self._targets(fields, wish, caller, within)
        return Draft(
            endpoint=endpoint,
            body=body,
            model=name,
            slo_class=slo_class,
            slo=slo,
            prompt_tokens=prompt,
            # Not less by the prompt, whose count is an estimate: output that reaches this limit is taken to be whole.
            max_output_tokens=model_len
            if output is None
            else min(max(int(endpoint.generates), output), LIMIT_MAX),
            tenant=_tenant(fields, wish),
            caller=caller,
            service_tier=tier,
            ttl_s=self._ttl(wish, within),
            resume=resume_of(fields, endpoint),
            stream=stream,
            include_usage=bool(options and options.get("include_usage")),
            running_usage=bool(
                options and options.get("include_usage") and options.get("continuous_usage_stats")
            ),
            trace=wish.trace,
            clamped=tuple(within.clamped),
            fingerprint=_fingerprint(endpoint, name, fields, wish) if keyed else "",
        )

    def targets(self, wish: Wish, caller: Caller) -> tuple[str, Slo]:
        """The class and targets of a wish alone. Raises InvalidRequest."""
        slo_class, slo, _ = self._targets({}, wish, caller, Within())
        return slo_class, slo

    def require_range(self, wish: Wish) -> None:
        """Raise InvalidRequest for the first target that would be brought within its range."""
        within = Within()
        self._slo(wish, Slo(ttft_s=1.0), within)
        for name, _ in within.clamped:
            raise InvalidRequest(
                f"slo.{name}",
                f"must be at least {SECONDS_MIN:g} and at most {self._limits.slo_ttft_s_max:g} seconds",
                "Give a target in that range.",
                code="invalid_slo",
            )

    def _model(self, name: object, caller: Caller) -> tuple[ModelName, int]:
        if name is None or name == "":
            raise InvalidRequest("model", "missing", "Name the model to use.", code="missing_field")
        if not isinstance(name, str):
            raise InvalidRequest("model", "must be a string", "Name the model to use.")
        section = self._config.models.get(name)
        if section is not None and caller.may_use(name):
            return ModelName(name), section.max_model_len
        known = self.models(caller)
        if name not in known:
            raise UnknownModel(name[:NAME_BYTES_MAX], tuple(known))
        return ModelName(name), known[name]

    # ---------------------------------------------------------------- targets

    def _targets(
        self, fields: Json, wish: Wish, caller: Caller, within: Within
    ) -> tuple[str, Slo, str]:
        """Class, targets and reported tier. What is said beside the body goes first."""
        name, reported = self._tiers.select(wish.slo_class, fields.get("service_tier"), caller)
        targets = (wish.ttft_s, wish.tpot_s, wish.e2e_s)
        caller.require_class(name, explicit=any(target is not None for target in targets))
        slo = self._slo(wish, self._config.slo_class(name).slo, within)
        if wish.ttft_s is None:
            return name, slo, reported
        return explicit_class(slo.ttft_s), slo, reported

    def _slo(self, wish: Wish, base: Slo, within: Within) -> Slo:
        """The targets of a wish, and of its class where it names none."""
        most_s = self._limits.slo_ttft_s_max

        def told(name: str, value: float | None) -> float | None:
            return None if value is None else within.bring(name, value, most_s)

        ttft_s, tpot_s, e2e_s = (
            told("ttft_s", wish.ttft_s),
            told("tpot_s", wish.tpot_s),
            told("e2e_s", wish.e2e_s),
        )
        if e2e_s is None and ttft_s is None:
            e2e_s = base.e2e_s
        return Slo(
            ttft_s=base.ttft_s if ttft_s is None else ttft_s,
            tpot_s=base.tpot_s if tpot_s is None else tpot_s,
            e2e_s=e2e_s,
        )

    def _ttl(self, wish: Wish, within: Within) -> float:
        longest_s = self._config.gateway.request_ttl_s
        return longest_s if wish.ttl_s is None else within.bring("ttl_s", wish.ttl_s, longest_s)


def explicit_class(ttft_s: float) -> str:
    """The class of an explicit target: requests whose targets are within a factor of two share it.

    The name gives the power of two at or below the target; all below 1/64 s are one class.
    """
    return f"{EXPLICIT}-{2.0 ** max(-6, math.floor(math.log2(ttft_s))):g}s"


def _fingerprint(endpoint: Endpoint, model: str, fields: Json, wish: Wish) -> str:
    """A digest of what is asked for: the endpoint, the body whatever its order and white space, class and targets."""
    asked = {key: value for key, value in fields.items() if key not in _NOT_DIGESTED}
    # As it was when there were two endpoints, so that keys from before an upgrade still fit.
    called = endpoint.chat if endpoint.generates else endpoint.path
    said = [called, model, asked, wish.slo_class, wish.ttft_s, wish.tpot_s, wish.e2e_s]
    return hashlib.sha256(msgspec.json.encode(said, order="sorted")).hexdigest()


def _tenant(fields: Json, wish: Wish) -> str:
    if len(wish.tenant.encode()) > NAME_BYTES_MAX:
        raise InvalidRequest(
            "tenant", f"must be text of at most {NAME_BYTES_MAX} bytes", "Use a shorter name."
        )
    if wish.tenant:
        return wish.tenant
    # These two are OpenAI's, and what else may be in them is the engine's to say.
    for name in ("safety_identifier", "user"):
        value = fields.get(name)
        if isinstance(value, str) and value:
            return _cut(value)
    return _cut(wish.session)


def _cut(name: str) -> str:
    return name.encode(errors="replace")[:NAME_BYTES_MAX].decode(errors="ignore")
