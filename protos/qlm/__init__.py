"""Namespace of the protocol definitions."""
