"""What files are for, in OpenAI's words."""

from __future__ import annotations

BATCH, USER_DATA, BATCH_OUTPUT = "batch", "user_data", "batch_output"
# What clients may upload. OpenAI's other purposes are for what is not served here, and what batches write is theirs.
UPLOADED = (BATCH, USER_DATA)
