"""Addresses of this machine and their network interfaces."""

from __future__ import annotations

import ipaddress
import os
import platform
import socket
import struct
from pathlib import Path

INHERITED = "descriptor://"  # a rendezvous over a connection that the process inherited
_SIOCGIFADDR = 0x8915  # Linux


def address_of(host: str) -> str:
    """Returns the one IPv4 address that a name or an address stands for, as this machine resolves it.

    Raises ValueError for a host that stands for no address, or for more than one machine: "0", "00.0.0.0" and
    "0x0" all mean every interface.
    """
    if not isinstance(host, str) or host.split() != [host]:
        raise ValueError(f"{host!r} is neither a name nor an address of a host")
    try:
        found = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]
    except (OSError, ValueError) as error:  # UnicodeError is a ValueError
        raise ValueError(f"{host!r} stands for no IPv4 address ({error})") from None
    address = ipaddress.IPv4Address(found)
    if address.is_unspecified or address.is_multicast or address.is_reserved:
        raise ValueError(f"{host!r} stands for {address}, which is not the address of one host")
    return found


def is_loopback(address: str) -> bool:
    """Returns whether only this machine can reach the address; raises ValueError like `address_of`."""
    return ipaddress.IPv4Address(address_of(address)).is_loopback


def interface_of(address: str) -> str:
    """Returns the name of the network interface that has the IPv4 address, for gloo.

    The variable GLOO_SOCKET_IFNAME has priority where it is set. Raises ValueError when no interface has the
    address, or like `address_of`.
    """
    if told := os.environ.get("GLOO_SOCKET_IFNAME"):
        return told
    wanted = socket.inet_aton(address_of(address))
    names = [name for _, name in socket.if_nameindex()]
    if wanted[0] == 127:
        return next((name for name in ("lo", "lo0") if name in names), "lo")
    if platform.system() == "Linux":
        import fcntl

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            for name in names:
                try:
                    found = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()))
                except OSError:
                    continue  # it has no address
                if found[20:24] == wanted:
                    return name
    raise ValueError(
        f"no network interface ({', '.join(names)}) has the address {address} as its first: "
        "set GLOO_SOCKET_IFNAME to the one that gloo shall use"
    )


def network_of(address: str) -> str:
    """Returns a name for the network of a loopback address, or "" for an address that others know too."""
    if not is_loopback(address):
        return ""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/net').readlink()}"
    except OSError:
        return platform.node()
