"""The gateway: the front door of the fleet, its ledger of requests and their durable store."""

from gateway.service import Addresses, Gateway, serve

__all__ = ["Addresses", "Gateway", "serve"]
