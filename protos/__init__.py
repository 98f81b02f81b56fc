"""The wire: protocol definitions, generated code, and the one translator."""
