"""The wire: protocol definitions, generated code, and the one translator."""

# Says whose package this is to `qlm.overwritten`, since others may have the same name.
DISTRIBUTION = "qlm-serving"
