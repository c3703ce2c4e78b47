"""llama.cpp's ``config.ini``: read what holds for every model, change single options, keep every other byte.

The grammar is that of llama.cpp b10488 common/preset.cpp (`parse_ini_from_file`): a section's header empties what an
earlier one of the same name had, a value ends before a ``;`` or ``#``, and a line that fits nothing makes every start
of the engine fail. What holds: ``[*]``, then ``[default]`` and what stands before any header (common/arg.cpp,
`common_params_apply_system_config`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from velollm.errors import VeloError

ALL = "*"
_DEFAULT = "default"
_HEADER = re.compile(r"\[[ \t]*([^\]]+?)[ \t]*\][ \t]*(?:[;#].*)?")
_PAIR = re.compile(r"([a-zA-Z_][a-zA-Z0-9_.-]*)[ \t]*=[ \t]*((?:(?![ \t]*(?:[;#]|$)).)*)[ \t]*(?:[;#].*)?")
_EMPTY = re.compile(r"[ \t]*(?:[;#].*)?")
_KEY = re.compile(r"[a-z][a-z0-9-]*")
_LINES = re.compile(r"([^\r\n]*)(\r\n|\n|\r|\Z)")


@dataclass(frozen=True)
class _Line:
    """A line: where it starts and ends (line end included), its section, and, of an option, key and value."""

    start: int
    end: int
    section: str
    header: bool = False
    key: str | None = None
    value: str = ""
    value_start: int = 0


def parse_config(text: str) -> dict[str, str]:
    """Options that hold for every model. Raises `VeloError` where the engine could not read the file."""
    return {**_section(text, ALL), **_section(text, _DEFAULT)}


def _section(text: str, name: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in _parse_lines(text):
        if line.section == name and line.header:
            found.clear()
        elif line.section == name and line.key is not None:
            found[line.key] = line.value
    return found


def render_config(text: str, changes: Mapping[str, str | None]) -> str:
    """The text with these options set in ``[*]``, or, where None, taken out of it.

    Raises:
        VeloError: the engine could not read the file, a name or value cannot stand in it, or ``[default]`` decides one.
    """
    for key, value in changes.items():
        _check(key, value)
    if decided := sorted(_section(text, _DEFAULT).keys() & changes.keys()):
        raise VeloError(f"{', '.join(decided)}: set in the section [default], which wins over [*]", "change it there")
    for key, value in reversed(list(changes.items())):  # each new one goes to the top of its section
        text = _with_one(text, key, value)
    return text


def _check(key: str, value: str | None) -> None:
    if not _KEY.fullmatch(key):
        raise VeloError(f"'{key}' is no long option of the engine", "write it without dashes before it")
    if value is not None and (value != value.strip() or re.search(r"[;#\x00-\x1f\x7f]", value)):
        raise VeloError(f"the value of {key} cannot stand in a config.ini", "give a plain value, without ; and #")


def _with_one(text: str, key: str, value: str | None) -> str:
    lines = _parse_lines(text)
    own: list[_Line] = []
    header: _Line | None = None
    for line in lines:
        if line.section == ALL and line.header:
            own, header = [], line
        elif line.section == ALL and line.key == key:
            own.append(line)
    if value is None:
        for line in reversed(own):
            text = text[: line.start] + text[line.end :]
        return text
    if own:
        last = own[-1]
        return text[: last.value_start] + value + text[last.value_start + len(last.value) :]
    newline = next((text[line.end - 2 : line.end] for line in lines if text[: line.end].endswith("\r\n")), "\n")
    if header is not None:
        joint = "" if text[: header.end].endswith(("\n", "\r")) else newline
        return f"{text[: header.end]}{joint}{key} = {value}{newline}{text[header.end :]}"
    joint = "" if not text or text.endswith(("\n", "\r")) else newline
    return f"{text}{joint}[{ALL}]{newline}{key} = {value}{newline}"


def _parse_lines(text: str) -> list[_Line]:
    found: list[_Line] = []
    section = _DEFAULT
    for number, match in enumerate(_LINES.finditer(text), 1):
        body, start, end = match.group(1), match.start(), match.end()
        if start == end:
            continue
        if header := _HEADER.fullmatch(body):
            section = header.group(1)
            found.append(_Line(start, end, section, header=True))
        elif pair := _PAIR.fullmatch(body):
            key, value = pair.groups()
            found.append(_Line(start, end, section, key=key, value=value, value_start=start + pair.start(2)))
        elif _EMPTY.fullmatch(body):
            found.append(_Line(start, end, section))
        else:
            raise VeloError(f"line {number} of config.ini cannot be read, and so no model can start", "mend that line")
    return found
