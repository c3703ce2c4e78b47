"""A server that streams by a known law, in a process of its own: what a measurement of it must give back is known.

    python benchmarks/known_server.py TTFT_S ITL_S [UNEVEN]

It speaks OpenAI's `/v1` on loopback, prints its address, and ends when its standard input closes. The first token of
an answer leaves TTFT_S after the request's last byte was read, the others ITL_S apart; with UNEVEN (a share below 1)
gaps change between ITL_S * (1 - UNEVEN) and ITL_S * (1 + UNEVEN). Before each send the clock is watched, not slept on,
for the last `_SPIN_S`, as a sleep comes back late by up to a tenth of a millisecond.

When each token really left is told at `/v1/times`, by the text of the prompt, on the clock that all processes of a
machine share (CLOCK_MONOTONIC): on a busy machine that, and not the law, is what a reader must give back.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

_SPIN_S = 0.0004
_HEADERS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: object) -> bytes:
    """One event as a chunk of the body."""
    text = data if isinstance(data, str) else json.dumps(data)
    body = f"data: {text}\n\n".encode()
    return f"{len(body):x}\r\n".encode() + body + b"\r\n"


def due_times(ttft_s: float, itl_s: float, uneven: float, tokens: int) -> list[float]:
    """When each token leaves, in seconds after the request."""
    times = [ttft_s]
    for place in range(1, tokens):
        times.append(times[-1] + itl_s * (1 + (uneven if place % 2 else -uneven)))
    return times


class KnownServer:
    """The law, and how many requests it has answered."""

    def __init__(self, ttft_s: float, itl_s: float, uneven: float = 0.0) -> None:
        self.ttft_s, self.itl_s, self.uneven = ttft_s, itl_s, uneven
        self.times: dict[str, list[float]] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: requests one after another."""
        try:
            while (head := await reader.readuntil(b"\r\n\r\n")) != b"":
                length = next(
                    (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
                )
                body = await reader.readexactly(length)
                began_s = time.perf_counter()
                if b" /v1/models" in head:
                    await self._tell(writer, {"data": [{"id": "known"}]})
                elif b" /v1/times" in head:
                    await self._tell(writer, self.times)
                else:
                    await self._answer(writer, json.loads(body), began_s)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _tell(self, writer: asyncio.StreamWriter, data: object) -> None:
        body = json.dumps(data).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()

    async def _answer(self, writer: asyncio.StreamWriter, request: dict[str, Any], began_s: float) -> None:
        tokens = int(request.get("max_tokens", 16))
        prompt = str(request["messages"][-1]["content"])
        times = self.times[prompt] = []
        writer.write(_HEADERS)
        for due_s in due_times(self.ttft_s, self.itl_s, self.uneven, tokens):
            await wait_until(began_s + due_s)
            piece = chunk({"choices": [{"delta": {"content": "word "}}]})
            times.append(time.perf_counter())
            writer.write(piece)
        writer.write(chunk({"choices": [{"delta": {}, "finish_reason": "length"}]}))
        usage = {"prompt_tokens": max(1, len(prompt) // 4), "completion_tokens": tokens}
        writer.write(chunk({"choices": [], "usage": usage}))
        writer.write(chunk("[DONE]") + b"0\r\n\r\n")
        await writer.drain()


async def wait_until(at_s: float) -> None:
    """Come back at a time of the clock."""
    if (left_s := at_s - time.perf_counter()) > _SPIN_S:
        await asyncio.sleep(left_s - _SPIN_S)
    while time.perf_counter() < at_s:
        pass


async def main(ttft_s: float, itl_s: float, uneven: float) -> None:
    """Serve until standard input closes."""
    known = KnownServer(ttft_s, itl_s, uneven)
    server = await asyncio.start_server(known.serve, "127.0.0.1", 0, backlog=512)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    law = [float(word) for word in sys.argv[1:4]]
    asyncio.run(main(law[0], law[1], law[2] if len(law) > 2 else 0.0))
