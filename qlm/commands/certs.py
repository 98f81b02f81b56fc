"""`qlm certs`: a private CA, and the certificates of the parts of a configuration (docs/security.md)."""

from __future__ import annotations

import argparse
from pathlib import Path

from qlm.commands import options

DAYS = 90
DAYS_MAX = 3650


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = subparsers.add_parser(
        "certs", help="make, renew and revoke the certificates of a fleet"
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    new = actions.add_parser("new", help="make the CA and every certificate that is not there yet")
    renew = actions.add_parser("renew", help="replace certificates, signed by the same CA")
    renew.add_argument("names", nargs="*", metavar="NAME", help="which (default: all)")
    revoke = actions.add_parser("revoke", help="have a certificate count no more")
    revoke.add_argument("names", nargs=1, metavar="NAME", help="such as agent-a100-0")
    for action in (new, renew, revoke):
        action.add_argument("--folder", type=Path, default=Path("certs"), help="default: certs")
        options.add_config(action)
    for action in (new, renew):
        action.add_argument(
            "--host",
            action="append",
            default=[],
            help="a host at which clients reach the gateway, beside those of the configuration",
        )
        action.add_argument(
            "--days", type=int, default=DAYS, help="how long they count (default: %(default)s)"
        )


def run(args: argparse.Namespace) -> int:
    """Carry it out and say what was done."""
    import time
    from datetime import UTC, datetime

    from qlm_core.errors import QlmError

    try:
        from qlm import certs
    except ImportError:
        raise QlmError(
            "qlm certs needs the package `cryptography`. Install it with "
            "pip install 'qlm-serving[certs]'."
        ) from None
    from protos import identity

    config = options.config_of(args)
    days = getattr(args, "days", DAYS)
    if not 0 < days <= DAYS_MAX:
        raise QlmError(f"--days: {days} is not between 1 and {DAYS_MAX}.")
    folder = certs.Folder(args.folder, now=datetime.fromtimestamp(time.time(), UTC), days=days)
    if args.action == "revoke":
        print(f"{args.names[0]} counts no more: {folder.revoke(args.names[0])}")
        return 0
    hosts = certs.hosts_of(config, args.host)
    if args.action == "new":
        made = folder.make(config, hosts)
    else:
        names = args.names or [*(part.file for part in identity.parts_of(config)), certs.CLIENTS]
        made = folder.renew(config, hosts, names)
    print(f"made in {args.folder}: {', '.join(made) or 'nothing, all are there'}")
    if args.action == "new" and made:
        at = args.folder
        print(
            "in the configuration:\n"
            f"  tls: {{ca: {at}/ca.crt, cert: '{at}/{{part}}.crt', key: '{at}/{{part}}.key', "
            f"revoked: {at}/{certs.REVOKED}}}\n"
            f"  gateway: {{tls: {{cert: {at}/{certs.CLIENTS}.crt, key: {at}/{certs.CLIENTS}.key}}}}\n"
            f"give each host ca.crt, {certs.REVOKED} and the files of its own parts, and a gateway's "
            f"{certs.CLIENTS}.crt and {certs.CLIENTS}.key too; keep ca.key to yourself"
        )
    return 0
