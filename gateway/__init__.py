"""The gateway: front door, ledger of requests and durable store."""
