"""What is this machine, to those who connect."""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache

_NAME = re.compile(r"(?:localhost|(?:[a-z0-9-]+\.)+localhost|([0-9.]+)|\[([0-9a-f:.]+)\])(?::[0-9]{1,5})?\Z")


@lru_cache(maxsize=256)
def is_loopback(address: str) -> bool:
    """Whether an address is of this machine's loopback (127.0.0.0/8, ::1)."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


@lru_cache(maxsize=256)
def is_loopback_name(host: str) -> bool:
    """Whether a Host header names the loopback: `localhost`, a loopback address, each with or without a port."""
    found = _NAME.match(host.lower())
    if found is None:
        return False
    address = found[1] or found[2]
    return address is None or is_loopback(address)


@lru_cache(maxsize=4096)
def network_of(address: str) -> str:
    """What counts as one place: an IPv4 address, or the network of 64 bits in which an IPv6 address is, since whoever
    has one address there has them all (RFC 6177).
    """
    if ":" not in address:
        return address
    try:
        parsed = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    mapped = parsed.ipv4_mapped
    return str(mapped) if mapped is not None else str(ipaddress.IPv6Network((int(parsed) >> 64 << 64, 64)))
