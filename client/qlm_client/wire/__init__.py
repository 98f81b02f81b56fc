"""The client's own copy of the wire, made by `generate.py` of `protos/qlm/v1` under another name.

Messages of one name can be registered only once in a process; so this copy and the server's, of whatever version, get along.
"""
