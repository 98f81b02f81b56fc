"""OpenAI's Batches API and what is behind it. Enter by `driver`; nothing is imported here, so that `scan` starts quickly."""
