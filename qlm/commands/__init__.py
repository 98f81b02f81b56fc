"""The commands of `qlm`, one module each.

A command module has `add_parser(subparsers)`, which describes its arguments, and `run(args)`, which does the work and
returns the exit status. It imports nothing heavy until `run` is called.
"""
