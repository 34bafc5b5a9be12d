"""A name server for tests: any name that it is asked for has the IPv4 addresses given to it."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

_HEADER = struct.Struct("!6H")
_ANSWERED = 0x8180  # a standard response, no error
_A, _IN = 1, 1


@dataclass
class Names:
    """What the server answers; change `addresses` while it runs.

    Attributes:
        port: Where it listens on 127.0.0.1.
        addresses: Such as "127.0.0.2".
        questions: How often it was asked for IPv4 addresses.
    """

    port: int
    addresses: list[str] = field(default_factory=list)
    questions: int = 0

    def target(self, port: int) -> str:
        """The gRPC target of a name that has these addresses, on a port."""
        return f"dns://127.0.0.1:{self.port}/stage.test:{port}"


@contextmanager
def name_server(*addresses: str) -> Iterator[Names]:
    """Answers on a free UDP port of the loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        names = Names(server.getsockname()[1], list(addresses))
        thread = threading.Thread(target=_answer, args=[server, names])
        thread.start()
        try:
            yield names
        finally:
            server.sendto(b"", server.getsockname())  # wakes the thread, and ends it
            thread.join()


def _answer(server: socket.socket, names: Names) -> None:
    while True:
        query, sender = server.recvfrom(4096)
        if not query:
            return
        number = _HEADER.unpack_from(query)[0]
        name_end = query.index(b"\0", _HEADER.size) + 1
        question = query[_HEADER.size : name_end + 4]
        kind = struct.unpack_from("!H", query, name_end)[0]
        records = []
        if kind == _A:
            names.questions += 1
            for address in names.addresses:
                # The name is a pointer to the question's; the answer holds for no second.
                record = struct.pack("!3HIH", 0xC000 | _HEADER.size, _A, _IN, 0, 4)
                records.append(record + socket.inet_aton(address))
        header = _HEADER.pack(number, _ANSWERED, 1, len(records), 0, 0)
        server.sendto(header + question + b"".join(records), sender)
