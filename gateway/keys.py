"""API keys: who may come in, what they may ask for, and whose a request and an idempotency key is.

Both front doors hand in what the client said in `authorization` and get a `Caller`. A key is a tenant: a tenant sees its own
requests and no others, an operator sees all. Where no keys are configured everybody is let in and sees everything.
"""

from __future__ import annotations

from dataclasses import dataclass

from protos.keyring import KeyRing, bearer, digest
from qlm_core.config import GatewayConfig
from qlm_core.config_access import TenantConfig
from qlm_core.config_doors import EXPLICIT
from qlm_core.errors import InvalidRequest, QlmError, UnknownModel

# Of an idempotency key.
KEY_BYTES_MAX = 256


class Forbidden(QlmError):
    """The caller is known, and may not do this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who calls.

    Attributes:
        tenant: whose its requests are; of a plain key a name that tells nothing of it, "" of who brings none.
        operator: whether it may see and end everybody's requests.
        models, classes: those that it may ask for; empty: all.
        requests_max: most open requests at a time; None: no limit of its own.
    """

    tenant: str
    operator: bool = False
    models: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    requests_max: int | None = None

    def sees(self, owner: str) -> bool:
        """Whether a request of this owner's exists, for the caller."""
        return self.operator or owner == self.tenant

    def may_use(self, model: str) -> bool:
        """Whether a model exists, for the caller."""
        return not self.models or model in self.models

    def require_model(self, model: str, known: tuple[str, ...]) -> None:
        """Raise UnknownModel for a model that the caller may not use, as for one that is not there."""
        if not self.may_use(model):
            raise UnknownModel(model, tuple(name for name in known if self.may_use(name)))

    def require_class(self, slo_class: str, *, explicit: bool) -> None:
        """Raise InvalidRequest unless the caller may ask for this.

        Args:
            explicit: whether targets of its own are asked for.
        """
        if not self.classes:
            return
        asked = EXPLICIT if explicit else slo_class
        if asked not in self.classes:
            what = "targets of your own" if explicit else f"{slo_class!r}"
            raise InvalidRequest(
                "slo_class",
                f"this API key may not ask for {what}",
                f"Use one of the classes {', '.join(self.classes)}.",
                code="class_not_allowed",
            )

    def require_operator(self) -> None:
        """Raise Forbidden for a tenant."""
        if not self.operator:
            raise Forbidden("authorization: this is for operators. Use the key of one.")


class ApiKeys:
    """The keys that a gateway accepts; none at all lets everybody in."""

    def __init__(self, config: GatewayConfig) -> None:
        keys = config.api_keys
        if isinstance(keys, dict):
            self._ring = KeyRing(tenant.key for tenant in keys.values())
            self._callers = tuple(_caller(name, tenant) for name, tenant in keys.items())
        else:
            self._ring = KeyRing(keys)
            self._callers = tuple(Caller(tenant=_name_of(key.reveal().encode())) for key in keys)

    def caller(self, *authorizations: bytes) -> Caller | None:
        """Who calls, by all that they sent as `authorization`; None if they may not come in.

        Who sends several is nobody: a proxy on the way may have judged by another one than we would.

        Without configured keys whoever calls may, and is known by the key that they bring all the same.
        """
        token = bearer(authorizations[0]) if len(authorizations) == 1 else b""
        if not self._callers:
            return Caller(tenant=_name_of(token) if token else "", operator=True)
        place = self._ring.place(token)
        return None if place is None else self._callers[place]

    def tenant(self, name: str) -> Caller:
        """What a tenant may ask for, without a call of theirs; one that is not configured any more may ask for all."""
        known = Caller(tenant=name)
        return next((caller for caller in self._callers if caller.tenant == name), known)


def _caller(name: str, section: TenantConfig) -> Caller:
    return Caller(
        tenant=name,
        operator=section.operator,
        models=section.models,
        classes=section.classes,
        requests_max=section.requests_max,
    )


def _name_of(key: bytes) -> str:
    return digest(key)[:16].hex()
