"""The kernel's count of the bytes that this process sent: for scripts that tests run as parties."""

import os
import socket
import stat
import struct

BYTES_ACKED = 120  # offset of tcpi_bytes_acked in struct tcp_info


def sent() -> int:
    """Sums the acknowledged bytes of every TCP connection of this process."""
    total = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as connection:
                if connection.family not in (socket.AF_INET, socket.AF_INET6):
                    continue
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                total += struct.unpack_from("Q", info, BYTES_ACKED)[0]
        except OSError:
            continue
    return total
