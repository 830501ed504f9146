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


def is_loopback(address: str) -> bool:
    """Returns whether only this machine can reach the address."""
    return ipaddress.ip_address(socket.gethostbyname(address)).is_loopback


def interface_of(address: str) -> str:
    """Returns the name of the network interface that has the IPv4 address, for gloo.

    The variable GLOO_SOCKET_IFNAME has priority where it is set. Raises ValueError when no interface has the
    address.
    """
    if told := os.environ.get("GLOO_SOCKET_IFNAME"):
        return told
    wanted = socket.inet_aton(socket.gethostbyname(address))
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
