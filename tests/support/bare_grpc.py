"""A gRPC client of a few lines: one call with an empty message, with or without headers, over a plain socket.

No package of the tests has gRPC, and Ray's own client always sends its token.
"""

from __future__ import annotations

import re
import socket
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, GOAWAY = 0, 1, 4, 7
END_STREAM, END_HEADERS = 1, 4
SECONDS = 5.0


def _frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    return struct.pack(">I", len(content))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + content


def _text(value: str) -> bytes:
    assert len(value) < 127
    return bytes([len(value)]) + value.encode()


def _literal(name: str, value: str) -> bytes:
    return b"\x00" + _text(name) + _text(value)  # HPACK: a literal field that is not indexed


def call(host: str, port: int, method: str, **headers: str) -> int | None:
    """Call a method with an empty message.

    Args:
        host: where the server listens.
        port: of the server.
        method: `/package.Service/Method`.
        **headers: further ones.

    Returns:
        The gRPC status: 0 OK, 12 unimplemented, 16 unauthenticated; None where the server speaks no gRPC.
    """
    fields = {":method": "POST", ":scheme": "http", ":path": method, ":authority": f"{host}:{port}",
              "content-type": "application/grpc", "te": "trailers", **headers}  # fmt: skip
    block = b"".join(_literal(name, value) for name, value in fields.items())
    request = PREFACE + _frame(SETTINGS, 0, 0, b"") + _frame(HEADERS, END_HEADERS, 1, block)
    request += _frame(DATA, END_STREAM, 1, b"\0" * 5)
    with socket.create_connection((host, port), timeout=SECONDS) as connection:
        connection.sendall(request)
        received = b""
        while True:
            try:
                content = connection.recv(65536)
            except TimeoutError:
                return None
            received += content
            # gRPC's servers write this field as a literal: its name, the length of the value, its digits
            if match := re.search(rb"grpc-status[\x01\x02](\d{1,2})", received):
                return int(match[1])
            if not content:
                return None
