"""Version 1 of the QLM protocol (generated code beside its definitions)."""
