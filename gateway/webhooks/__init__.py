"""Webhooks: who is told that a batch or a response is over, for certain and signed."""
