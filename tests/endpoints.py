"""The endpoints that generate text, for tests that try both of them."""

from qlm_core.endpoint import Endpoint


def generating(chat: bool) -> Endpoint:
    return Endpoint.CHAT_COMPLETIONS if chat else Endpoint.COMPLETIONS
