"""The way of a process of a group to the others through the relay (`pibench.links.relay`).

A process asks the relay for a port and calls that port.
"""

from __future__ import annotations

import socket

from pibench.links.relay import REPLY, REQUEST


def port_through(relay: str, caller: int, listener: int, port: int) -> int:
    """Asks the relay at the path `relay` for the port that leads process `caller` to `listener`'s `port`.

    Raises ConnectionError when the relay does not answer.
    """
    with socket.socket(socket.AF_UNIX) as control:
        control.connect(relay)
        control.sendall(REQUEST.pack(caller, listener, port))
        reply = control.recv(REPLY.size, socket.MSG_WAITALL)
    if len(reply) < REPLY.size:
        raise ConnectionError("the link's relay did not answer: its process has probably ended")
    return REPLY.unpack(reply)[0]
