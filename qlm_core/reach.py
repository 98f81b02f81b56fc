"""Which addresses a gateway may call by itself.

It can reach hosts that nobody outside must lead it to: itself, its neighbours, the metadata of a cloud. So it calls public
addresses, and others only where the configuration names their networks.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# What is not the Internet's of IPv4 (RFC 6890 and its registry); what is of IPv6, and of that what is not. Python's own lists
# differ from release to release.
_OTHERS_4 = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",
            "127.0.0.0/8",
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.88.99.0/24",
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/3",
        ),
    )
)
_PUBLIC_6 = ipaddress.IPv6Network("2000::/3")
_OTHERS_6 = tuple(
    map(ipaddress.IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"))
)
# Addresses of IPv4, as networks without it reach them.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def networks_of(texts: Iterable[str]) -> tuple[Network, ...]:
    """Networks from how a configuration writes them. Raises ValueError."""
    return tuple(map(ipaddress.ip_network, texts))


def is_address(host: str) -> bool:
    """Whether a host is named by its address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def may_reach(host: str, networks: Sequence[Network], *, public: bool = True) -> bool:
    """Whether an address may be called: one within `networks`, or a public one if `public` says so."""
    try:
        address: Address = ipaddress.ip_address(host)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        elif address in _NAT64:
            inner = str(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
            return _within(address, networks) or may_reach(inner, networks, public=public)
    return _within(address, networks) or (public and _is_public(address))


def _within(address: Address, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks)


def _is_public(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv4Address):
        return not _within(address, _OTHERS_4)
    return address in _PUBLIC_6 and not _within(address, _OTHERS_6)
