"""The page at /ui: what waits, why, until when, and what would help, shown live to any number of people."""
