from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from velollm.backends.wire import _SO_TIMESTAMPNS, Exchange, Piece, WireError, WireTimeoutError, lines_of


@pytest.fixture
def stamping() -> Iterator[None]:
    """The kernel stamps what arrives: it begins to a moment after the first socket wants that, so one stays open."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(("127.0.0.1", 0))
        one.settimeout(5.0)
        one.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        ancillary: list[tuple[int, int, bytes]] = []
        while not ancillary:
            one.sendto(b"?", one.getsockname())
            _, ancillary, _, _ = one.recvmsg(16, 256)
        yield


@contextmanager
def answering(*parts: bytes | Callable[[], object]) -> Iterator[str]:
    """A server that reads one request, then sends the parts; a function among them is called instead."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                request = b""
                while b"\r\n\r\n" not in request:
                    request += connection.recv(65536)
                for part in parts:
                    if isinstance(part, bytes):
                        connection.sendall(part)
                    else:
                        part()

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/x"
        thread.join()


def read(url: str, wait_s: float = 5.0) -> tuple[int, list[tuple[str, float]]]:
    with closing(Exchange(url, {"a": 1}, {}, connect_s=5.0, clock=time.perf_counter)) as exchange:
        lines = list(lines_of(exchange.pieces(wait_s)))
        return exchange.status, lines


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "lines"),
    [
        (CHUNKED + b"6\r\none\ntw\r\n2\r\no\n\r\n0\r\n\r\n", ["one", "two"]),
        (CHUNKED + b"4;x=1\r\none\n\r\n0\r\n\r\n", ["one"]),
        (OK + b"Content-Length: 7\r\n\r\none\ntwo", ["one", "two"]),
        (OK + b"\r\none\r\ntwo\r\n", ["one", "two"]),
        (OK + b"Content-Length: 0\r\n\r\n", []),
    ],
)
def test_bodies_of_every_kind(answer: bytes, lines: list[str]) -> None:
    with answering(answer) as url:
        status, found = read(url)
    assert status == 200
    assert [line for line, _ in found] == lines
    with answering(*(answer[place : place + 1] for place in range(len(answer)))) as url:
        assert [line for line, _ in read(url)[1]] == lines


@pytest.mark.parametrize(
    "answer",
    [
        *(b"", b"hello\r\n\r\n", b"HTTP/1.1\r\n\r\n", CHUNKED + b"zz\r\n", b"x" * (1 << 19)),
        *(CHUNKED + b"ff\r\none\ncut", CHUNKED + b"4\r\none\n\r\n", OK + b"Content-Length: 9\r\n\r\ncut"),
    ],
)
def test_what_is_no_http_or_not_whole_is_said(answer: bytes) -> None:
    with answering(answer) as url, pytest.raises(WireError):
        read(url)


def test_silence_is_a_timeout() -> None:
    over = threading.Event()
    with answering(OK, over.wait) as url:
        with pytest.raises(WireTimeoutError):
            read(url, 0.1)
        over.set()


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(WireError):
        read(f"http://127.0.0.1:{port}/")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells when a piece arrived")
@pytest.mark.usefixtures("stamping")
def test_a_late_reader_still_knows_when_it_came() -> None:
    """The reader asks only after the second piece was sent, and yet the first bytes bear their own time."""
    sent: list[float] = []
    began_s = time.perf_counter()
    with (
        answering(CHUNKED + b"4\r\none\n\r\n", lambda: sent.append(time.perf_counter()), b"0\r\n\r\n") as url,
        closing(Exchange(url, {}, {}, connect_s=5.0, clock=time.perf_counter)) as exchange,
    ):
        while not sent:
            time.sleep(0.001)
        time.sleep(0.2)
        found = list(lines_of(exchange.pieces(5.0)))
    assert found[0][0] == "one"
    assert found[0][1] < time.perf_counter() - began_s - 0.19


@given(st.lists(st.binary(max_size=40), max_size=8))
@settings(max_examples=50)
def test_lines_do_not_hang_on_how_the_bytes_were_cut(parts: list[bytes]) -> None:
    whole = b"".join(parts)
    at_once = [line for line, _ in lines_of(iter([Piece(whole, 1.0)]))]
    assert [line for line, _ in lines_of(Piece(part, 1.0) for part in parts)] == at_once
