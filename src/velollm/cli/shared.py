"""What the commands share: their common options, consoles, progress and JSON."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from velollm.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from velollm.knobs import KnobValue
    from velollm.report.bug import Identity

SCHEMA_VERSION = 1

ModelArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODEL]",
        help="Ollama name or path of a GGUF file; without one, Ollama's loaded or newest model, else one made here.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")]
BackendOption = Annotated[
    str, typer.Option("--backend", metavar="auto|ollama|llamacpp|embedded|openai", help="The engine to work with.")
]
ProfileOption = Annotated[
    str,
    typer.Option(
        "--profile", metavar="chat|code|agent|team|throughput|low-memory", help="What the machine is wanted for."
    ),
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KNOB=VALUE", help="Pin a knob; may be given several times.")
]


def print_json(document: dict[str, Any]) -> None:
    """The one document of a ``--json`` run."""
    print(json.dumps({"schema_version": SCHEMA_VERSION, **document}, indent=2, ensure_ascii=False, allow_nan=False))


def console(*, stderr: bool = False) -> Console:
    """A rich console that respects pipes, NO_COLOR and the width of the terminal."""
    from rich.console import Console

    # Rich itself would still write bold and dim under NO_COLOR.
    plain = bool(os.environ.get("NO_COLOR"))
    return Console(stderr=stderr, highlight=False, soft_wrap=False, emoji=False, color_system=None if plain else "auto")


def parse_pins(texts: list[str] | None) -> dict[str, KnobValue]:
    """Pins from ``--set KNOB=VALUE`` texts. Raises `UsageError` for a wrong one."""
    from velollm.knobs import KNOBS, parse_knob_value

    pins: dict[str, KnobValue] = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set takes KNOB=VALUE, not '{text}'", "for example --set threads=4")
        try:
            pins[name.strip()] = parse_knob_value(name.strip(), value)
        except ValueError as error:
            raise UsageError(str(error), f"knobs: {', '.join(KNOBS)}") from error
    return pins


def parse_budget_s(text: str) -> float:
    """Seconds of ``--budget``; at least 10 s. Raises `UsageError`."""
    from velollm.units import parse_duration_s

    seconds = parse_duration_s(text)
    if seconds is None or seconds < 10:
        raise UsageError(f"--budget takes a duration of at least 10s, not '{text}'", "for example --budget 3m")
    return seconds


def parse_counts(option: str, text: str, least: int, most: int) -> tuple[int, ...]:
    """Whole numbers of a list such as ``0,4k,16k`` (k: 1,024), each once. Raises `UsageError`."""
    found: list[int] = []
    for part in text.lower().split(","):
        number, factor = (part.strip()[:-1], 1024) if part.strip().endswith("k") else (part.strip(), 1)
        if not number.isdecimal() or len(number) > 9 or not least <= int(number) * factor <= most:
            raise UsageError(
                f"{option} takes whole numbers from {least:,} to {most:,}, not '{part.strip()}'",
                f"for example {option} {'0,4k' if least == 0 else '1,4'}",
            )
        found.append(int(number) * factor)
    return tuple(dict.fromkeys(found))


class Meter:
    """Progress of long work on stderr: a bar with time left on a terminal, single lines in a pipe."""

    def __init__(self, console: Console, assume: bool | None) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        self.assume = assume
        self._console = console
        self._began_s = time.monotonic()
        self._last = ""
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[left]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=1.0, left="")

    def start(self) -> None:
        self._bar.start()

    def stop(self) -> None:
        self._bar.stop()

    def note(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text, style="dim", soft_wrap=True)

    def ask(self, question: str) -> bool:
        """A yes or no in mid-flight: what ``--yes`` said, or the person at the terminal."""
        if self.assume is not None or not is_interactive():
            return bool(self.assume)
        self._bar.stop()
        try:
            return ask(question)
        finally:
            self._bar.start()

    def __call__(self, done: float, text: str, left_s: float | None = None) -> None:
        """Work is ``done`` (0 to 1); ``left_s`` seconds are left, None where unknown."""
        left = "" if left_s is None else f"about {max(1, round(left_s))} s left"
        self._bar.update(self._task, completed=done, description=text, left=left)
        if not self._console.is_terminal and text != self._last:
            self._last = text
            self._console.print(f"{time.monotonic() - self._began_s:5.0f} s  {text}" + (f"  ({left})" if left else ""))


@contextmanager
def meter(assume: bool | None = None) -> Iterator[Meter]:
    """A running `Meter` on stderr; ``assume`` answers its questions without asking."""
    bar = Meter(console(stderr=True), assume)
    bar.start()
    try:
        yield bar
    finally:
        bar.stop()


def own_identity() -> Identity:
    """Who and where we are, to be left out of what is shown to others."""
    import getpass
    import socket
    from pathlib import Path

    from velollm.report.bug import Identity

    users = [os.environ.get(name, "") for name in ("USER", "LOGNAME", "SUDO_USER", "USERNAME")]
    with suppress(KeyError, OSError, ImportError):  # no entry for this user id
        users.append(getpass.getuser())
    home = Path.home()
    users.append(home.name)
    hosts = (socket.gethostname(), os.environ.get("HOSTNAME", ""), os.environ.get("COMPUTERNAME", ""))
    return Identity(tuple(filter(None, users)), tuple(filter(None, hosts)), str(home))


def is_interactive() -> bool:
    """Can a person be asked?"""
    return sys.stdin.isatty() and sys.stderr.isatty()


def ask(question: str) -> bool:
    """A yes or no on the terminal, asked on stderr; no answer is no."""
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    try:
        return sys.stdin.readline().strip().lower() in ("y", "yes")
    except OSError:
        return False
