"""Which addresses a manifest's rows may lead to: not this machine, its network, or its cloud's internal services."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any
from urllib.parse import unquote

_LOCAL_NAMES = ("localhost", "localhost.localdomain")
# The IPv6 addresses that are allocated to the internet.
_UNICAST = ipaddress.IPv6Network("2000::/3")
# Public by number, or to an older Python, but internal to a cloud (Azure, Oracle), or of relays.
_OWN = tuple(map(ipaddress.IPv4Network, ("168.63.129.16/32", "192.0.0.0/24", "192.88.99.0/24")))
# Gateways from IPv6 to IPv4 (RFC 6052): the last 32 bits are the IPv4 address.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class PrivateAddressError(OSError):
    """A host's address is not allowed for rows.

    Its text has no address, so that a host with several such addresses gives one error.
    """

    def __init__(self, address: str) -> None:
        super().__init__("private address")
        self.address = address

    def __str__(self) -> str:
        return "private address"


def is_public(address: str) -> bool:
    """Tell whether an IP address is public; IPv4 inside IPv6 is judged as IPv4."""
    whole = ipaddress.ip_address(address)
    if isinstance(whole, ipaddress.IPv4Address):
        return _is_public(whole)
    if whole in _NAT64:
        return _is_public(ipaddress.IPv4Address(int(whole) & 0xFFFFFFFF))
    if whole.ipv4_mapped is not None:
        return _is_public(whole.ipv4_mapped)
    inside = [one for one in (whole.sixtofour, *(whole.teredo or ())) if one is not None]
    return whole in _UNICAST and (all(map(_is_public, inside)) if inside else whole.is_global)


def _is_public(address: ipaddress.IPv4Address) -> bool:
    is_own = any(address in network for network in _OWN)
    return address.is_global and not (address.is_multicast or address.is_reserved or is_own)


def public_socket(found: Any) -> socket.socket:  # noqa: ANN401 (one result of getaddrinfo)
    """Return a socket for connecting to a public address.

    It is called for each address just before connecting, whatever led there: a name that resolves to another address a
    moment later (DNS rebinding) gains nothing.

    Raises:
        PrivateAddressError: The address is not public.
    """
    family, kind, protocol, _, address = found
    if not is_public(address[0]):
        raise PrivateAddressError(address[0])
    return socket.socket(family=family, type=kind, proto=protocol)


def refuse_private_name(host: str) -> None:
    """Refuse a host that is a private address, however written, or this machine; for proxies, which resolve names.

    Raises:
        PrivateAddressError: The host is this machine, or its address is not public.
    """
    name = unquote(host).rstrip(".").lower()
    if name in _LOCAL_NAMES or name.endswith(".localhost"):
        raise PrivateAddressError(host)
    try:
        address = str(ipaddress.ip_address(name.partition("%")[0]))
    except ValueError:
        try:
            address = socket.inet_ntoa(socket.inet_aton(name))  # 127.1, 0x7f000001, 2130706433
        except OSError:
            return
    if not is_public(address):
        raise PrivateAddressError(host)
