"""The face of QLM: the `qlm` command and the Python client."""
