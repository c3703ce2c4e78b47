"""`velollm status`: what VeloLLM has set here, what runs, and where they differ."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from velollm.cli.shared import SCHEMA_VERSION, JsonOption, console, print_json
from velollm.errors import EXIT_ADVISED, UsageError

if TYPE_CHECKING:
    from velollm.status.sample import Sample, Speeds

_SHORTEST_S = 0.2


def command(
    watch: Annotated[bool, typer.Option("--watch", help="Show memory, slots and speeds, again and again.")] = False,
    interval: Annotated[
        str, typer.Option("--interval", metavar="TIME", help="Time between two looks of --watch.")
    ] = "1s",
    json_: JsonOption = False,
) -> None:
    """Say what VeloLLM has set here, what really runs, where they differ, and who changed it.

    Leaves with 3 where they differ. With --watch it looks until q or Ctrl-C; in a pipe, one line a look.

    Example: velollm status --watch
    """
    interval_s = _parse_interval_s(interval)
    if watch:
        # Ctrl-C is the way out of it, so it is no error here.
        with contextlib.suppress(KeyboardInterrupt):
            _watch(interval_s, json_=json_)
        return
    from velollm.config import user_paths
    from velollm.probe.machine import probe_machine
    from velollm.report.status import render_standing, standing_fields
    from velollm.status.read import read_standing

    standing = read_standing(user_paths(), probe_machine(sample_s=0))
    if json_:
        print_json(standing_fields(standing))
    else:
        console().print(render_standing(standing), soft_wrap=True)
    if standing.drift:
        raise typer.Exit(EXIT_ADVISED)


def _parse_interval_s(text: str) -> float:
    from velollm.units import parse_duration_s

    seconds = parse_duration_s(text)
    if seconds is None or seconds < _SHORTEST_S:
        raise UsageError(f"--interval takes a time of at least {_SHORTEST_S:g}s, not '{text}'", "for example 2s")
    return seconds


def _watch(interval_s: float, *, json_: bool) -> None:
    """Look until somebody leaves."""
    from velollm.probe.machine import probe_machine
    from velollm.status.sample import compare_samples
    from velollm.status.watch import Watcher

    before: Sample | None = None
    with (
        contextlib.closing(Watcher(probe_machine(sample_s=0))) as watcher,
        _leaving() as left,
        _screen(watcher.url, interval_s, json_=json_) as show,
    ):
        while True:
            began_s = time.monotonic()
            sample = watcher.look()
            show(sample, compare_samples(before, sample))
            before = sample
            if left(max(0.0, interval_s - (time.monotonic() - began_s))):
                return


@contextmanager
def _screen(url: str, interval_s: float, *, json_: bool) -> Iterator[Callable[[Sample, dict[str, Speeds]], None]]:
    """How a look is shown: drawn again on a terminal, a line in a pipe, a document on a line with --json."""
    from velollm.report.status import render_sample, render_sample_line, sample_fields

    out = console()
    if json_ or not out.is_terminal:

        def tell(sample: Sample, speeds: dict[str, Speeds]) -> None:
            now = datetime.now(UTC)
            if json_:
                fields = sample_fields(sample, speeds, now.isoformat(timespec="milliseconds"))
                line = json.dumps({"schema_version": SCHEMA_VERSION, **fields}, allow_nan=False)
            else:
                line = render_sample_line(sample, speeds, now.astimezone().strftime("%H:%M:%S"))
            print(line, flush=True)

        yield tell
        return
    from rich.live import Live

    with Live(console=out, auto_refresh=False, vertical_overflow="crop") as live:
        yield lambda sample, speeds: live.update(render_sample(sample, speeds, url, interval_s), refresh=True)


@contextmanager
def _leaving() -> Iterator[Callable[[float], bool]]:
    """A function that waits so many seconds, and tells whether somebody pressed q meanwhile."""
    try:
        import select
        import termios
        import tty

        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor) if sys.stdin.isatty() else None
    except (ImportError, OSError, ValueError):  # Windows, or no standard input at all
        before = None
    if before is None:
        yield _wait
        return

    def left(seconds: float) -> bool:
        until_s = time.monotonic() + seconds
        while (rest_s := until_s - time.monotonic()) > 0:
            ready, _, _ = select.select([descriptor], [], [], rest_s)
            if ready and ((typed := os.read(descriptor, 64)) == b"" or b"q" in typed.lower()):
                return True
        return False

    tty.setcbreak(descriptor)
    try:
        yield left
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _wait(seconds: float) -> bool:
    time.sleep(seconds)
    return False
