"""One streamed HTTP answer over a plain socket, each piece with the time at which it reached this machine.

A general HTTP client takes milliseconds of its own before the first byte leaves and after each one comes. Here the
request is ready and the connection is open before the clock starts, and on Linux the kernel says when a piece arrived
(SO_TIMESTAMPNS, socket(7); for TCP the time of the last packet of what was read), so that a reader that had to wait for
its turn among many threads is late and its times are not. Packets that waited together have the last one's time.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

_PIECE_BYTES = 65536
_MOST_HEAD_BYTES = 1 << 18
_MOST_LINE_BYTES = 1 << 24
# asm-generic/socket.h, the same on x86, ARM, RISC-V and POWER; the socket module does not name it.
_SO_TIMESTAMPNS = 35
_CUT = "the server closed the connection before its answer was whole"
_CLOCKS_AGREE_S = 0.005
_TIMESPEC = struct.Struct("@qq")


class WireError(Exception):
    """The connection could not be made, or broke, or what came is no HTTP."""


class WireTimeoutError(WireError):
    """Nothing came in time."""


@dataclass(frozen=True)
class Piece:
    """Bytes of the body, and when they arrived: seconds after the request was sent."""

    data: bytes
    at_s: float


class Exchange:
    """One request and its answer; ``close`` ends it, however far it came.

    ``read_s``: when the last piece was read, by this program's own clock.
    """

    def __init__(
        self,
        url: str,
        body: Mapping[str, object],
        headers: Mapping[str, str],
        *,
        connect_s: float,
        clock: Callable[[], float],
    ) -> None:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or 80
        request = _request_bytes(parts.netloc, parts.path or "/", json.dumps(body).encode(), headers)
        self.status = 0
        self.read_s = 0.0
        self._clock = clock
        self._pending = b""
        self._headers: dict[str, str] = {}
        try:
            self._socket = socket.create_connection((host, port), timeout=connect_s)
        except OSError as error:
            raise WireError(str(error)) from error
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._stamped = _ask_for_times(self._socket)
            # The kernel's times are those of the wall clock; the two clocks are read together.
            self._sent_wall_s, self._sent_s = time.time(), clock()
            self._socket.sendall(request)
        except OSError as error:
            self._socket.close()
            raise WireError(str(error)) from error

    def close(self) -> None:
        self._socket.close()

    def pieces(self, wait_s: float) -> Iterator[Piece]:
        """The body as it comes; ``status`` is known from the first piece on, or from the end of an empty body.

        Raises:
            WireTimeoutError: nothing came for ``wait_s``.
            WireError: the connection broke, or what came is no HTTP.
        """
        self._socket.settimeout(wait_s)
        at_s = self._read_head()
        if self._headers.get("transfer-encoding", "").lower() == "chunked":
            yield from self._chunks(at_s)
            return
        length = self._headers.get("content-length")
        left = int(length) if length is not None and length.isdecimal() else None
        while left is None or left > 0:
            if not self._pending:
                if (arrived := self._receive()) is None:
                    if left is not None:
                        raise WireError(_CUT)
                    return
                at_s = arrived
            data, self._pending = self._pending[:left], b""
            left = None if left is None else left - len(data)
            yield Piece(data, at_s)

    def _read_head(self) -> float:
        at_s = 0.0
        while b"\r\n\r\n" not in self._pending:
            if len(self._pending) > _MOST_HEAD_BYTES:
                raise WireError("the answer's head has no end")
            if (arrived := self._receive()) is None:
                raise WireError("the server closed the connection without an answer")
            at_s = arrived
        head, _, self._pending = self._pending.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        words = first.split(None, 2)
        if len(words) < 2 or not words[0].startswith("HTTP/") or not words[1].isdecimal():
            raise WireError("the answer is no HTTP")
        self.status = int(words[1])
        self._headers = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
        }
        return at_s

    def _chunks(self, at_s: float) -> Iterator[Piece]:
        """Data of a chunked body (RFC 9112, section 7.1)."""
        while True:
            while b"\n" not in self._pending:
                if len(self._pending) > _MOST_HEAD_BYTES:
                    raise WireError("the answer is no HTTP")
                if (arrived := self._receive()) is None:
                    raise WireError(_CUT)
                at_s = arrived
            line, _, self._pending = self._pending.partition(b"\n")
            try:
                left = int(line.split(b";")[0].strip() or b"0", 16)
            except ValueError as error:
                raise WireError("the answer is no HTTP") from error
            if left == 0:
                return
            while left > 0:
                if not self._pending:
                    if (arrived := self._receive()) is None:
                        raise WireError(_CUT)
                    at_s = arrived
                data, self._pending = self._pending[:left], self._pending[left:]
                left -= len(data)
                yield Piece(data, at_s)
            while len(self._pending) < 2:
                if (arrived := self._receive()) is None:
                    raise WireError(_CUT)
                at_s = arrived
            self._pending = self._pending[2:]

    def _receive(self) -> float | None:
        """Add what has come to what is pending; when it came, None where the connection has ended."""
        try:
            if self._stamped:
                data, notes, _, _ = self._socket.recvmsg(_PIECE_BYTES, 64)
            else:
                data, notes = self._socket.recv(_PIECE_BYTES), []
        except TimeoutError as error:
            raise WireTimeoutError("nothing came in time") from error
        except OSError as error:
            raise WireError(str(error)) from error
        self.read_s = now_s = self._clock() - self._sent_s
        if not data:
            return None
        self._pending += data
        return self._arrival_s(notes, now_s)

    def _arrival_s(self, notes: list[tuple[int, int, bytes]], now_s: float) -> float:
        """The kernel's time where it gives one that can be true: not before the request, nor after now.

        A wall clock that was set meanwhile, or a clock of another kind than the kernel's, makes it useless.
        """
        if abs(time.time() - self._sent_wall_s - now_s) > _CLOCKS_AGREE_S:
            return now_s
        for level, kind, data in notes:
            if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS and len(data) == _TIMESPEC.size:
                seconds, nanoseconds = _TIMESPEC.unpack(data)
                at_s = seconds + nanoseconds / 1e9 - self._sent_wall_s
                if 0.0 < at_s <= now_s:
                    return float(at_s)
        return now_s


def lines_of(pieces: Iterator[Piece]) -> Iterator[tuple[str, float]]:
    """Lines of a body, each with the time at which its end arrived.

    Raises:
        WireError: a line has no end.
    """
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece.data).split(b"\n")
        for line in whole:
            yield line.rstrip(b"\r").decode("utf-8", "replace"), piece.at_s
        if len(rest) > _MOST_LINE_BYTES:
            raise WireError("a line of the answer has no end")
    if rest:
        yield rest.decode("utf-8", "replace"), piece.at_s


def _request_bytes(host: str, path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    fields = {
        **headers,
        "Host": host,
        "Content-Type": "application/json",
        "Accept-Encoding": "identity",
        "Connection": "close",
        "Content-Length": str(len(body)),
    }
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + body


def _ask_for_times(connection: socket.socket) -> bool:
    if sys.platform != "linux":
        return False
    try:
        connection.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    except OSError:
        return False
    return True
