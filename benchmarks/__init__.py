"""Measurements of QLM; see README.md."""
