"""Loopback ports that are the test's own for as long as it wants them, whatever else runs on the machine."""

from __future__ import annotations

import socket


class Port:
    """A free port, held by a socket that is bound and doesn't listen: the kernel gives the number to nobody else, and
    who asks for it by name with SO_REUSEADDR, as servers do, listens on it. Held until ``free`` or the object's end.
    """

    def __init__(self) -> None:
        self._holder = socket.socket()
        self._holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._holder.bind(("127.0.0.1", 0))
        self.number = int(self._holder.getsockname()[1])

    def free(self) -> None:
        self._holder.close()

    def __del__(self) -> None:
        self.free()
