"""A link in the place of the relay that keeps every byte that passes, and may change it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pibench.links.link import Link
from pibench.links.relay import REPLY, REQUEST
from pibench.links.shapers import LOOPBACK_HOST, Place, Shaper, Start

LINK = Link("tapped", 1e-3, 8e6)
"""The link that is asked for; nothing delays it, and the check of a link says so without harm."""


@dataclass
class Heard:
    """The bytes of one direction of one connection, from the process `source` to `sink`."""

    source: int
    sink: int
    data: bytearray = field(default_factory=bytearray)


class Tapped(Shaper):
    """A shaper without a process: threads pass the bytes on. `change` may replace what is passed."""

    name = "user-space"

    def __init__(self, link: Link) -> None:
        super().__init__(link)
        self.heard: list[Heard] = []
        self.change: Callable[[int, bytes], bytes] = lambda source, data: data
        self._open: list[socket.socket] = []

    def start(self, folder: Path, start: Start) -> None:
        self._path = str(folder / "relay")
        control = socket.socket(socket.AF_UNIX)
        control.bind(self._path)
        control.listen()
        self._serve(control, self._meet)

    def place(self, rank: int) -> Place:
        return Place(relay=self._path, key=self.key)

    def stop(self) -> None:
        for each in self._open:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _serve(self, server: socket.socket, serve: Callable[[socket.socket], None]) -> None:
        """Serves every caller of `server`, in a thread, until it is closed."""
        self._open.append(server)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    serve(server.accept()[0])

        threading.Thread(target=accept, daemon=True).start()

    def _meet(self, asking: socket.socket) -> None:
        """Opens a port that leads a process to a port of another one."""
        with asking:
            caller, listener, port = REQUEST.unpack(asking.recv(REQUEST.size, socket.MSG_WAITALL))
            server = socket.create_server((LOOPBACK_HOST, 0))

            def join(near: socket.socket) -> None:
                try:
                    far = socket.create_connection((LOOPBACK_HOST, port), timeout=5)
                except OSError:  # it does not listen yet: the caller calls again
                    near.close()
                    return
                far.settimeout(None)
                self._open += [near, far]
                for ends, ranks in (((near, far), (caller, listener)), ((far, near), (listener, caller))):
                    threading.Thread(target=self._pass, args=(*ends, Heard(*ranks)), daemon=True).start()

            self._serve(server, join)
            asking.sendall(REPLY.pack(server.getsockname()[1]))

    def _pass(self, source: socket.socket, sink: socket.socket, heard: Heard) -> None:
        self.heard.append(heard)
        with suppress(OSError):
            sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := source.recv(1 << 16):
                heard.data += data
                sink.sendall(self.change(heard.source, data))
            sink.shutdown(socket.SHUT_WR)
