"""Which files of certificates a configuration names, and whether they serve on this host.

A host has the files of its own parts, so what is missing here may lie elsewhere; what is here has to fit together.
"""

from __future__ import annotations

from pathlib import Path

from gateway.listeners import client_certificates
from protos.doors import Doors
from protos.identity import Part, parts_of
from qlm_core.config import Config
from qlm_core.config_doors import PART


def missing(config: Config) -> list[str]:
    """The files that are not on this host, as the configuration writes them.

    Raises QlmError where those that are here cannot be read, or do not fit together.
    """
    section = config.gateway.tls
    sets = [[section.cert, section.key]]
    if not _absent(sets[0]):
        client_certificates(config.gateway)
    if config.tls.ca:
        for part in parts_of(config):
            files = _files_of(config, part)
            sets.append(files)
            if not _absent(files):
                Doors(config, part)
    return list(dict.fromkeys(path for files in sets for path in _absent(files)))


def _files_of(config: Config, part: Part) -> list[str]:
    tls = config.tls
    own = [path.replace(PART, part.file) for path in (tls.cert, tls.key)]
    return [tls.ca, *own, tls.revoked]


def _absent(files: list[str]) -> list[str]:
    return [path for path in files if path and not Path(path).exists()]
