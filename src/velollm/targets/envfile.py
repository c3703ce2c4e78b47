"""Environment files: read what they set, change single variables, keep every other byte.

The syntax is what a shell's `. file` and systemd's `EnvironmentFile=` (systemd.exec(5)) have in common:
``KEY=value`` lines, ``export KEY=value``, ``#`` comments, 'single' and "double" quotes (which may span lines),
a backslash before a special character. Nothing is expanded. Lines that set nothing are kept as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from velollm.errors import VeloError

# A byte order mark may stand at the start, or inside where files were joined.
_ASSIGNMENT = re.compile(r"[ \t\ufeff]*(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_]*)=")
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PLAIN = re.compile(r"[A-Za-z0-9_./:,@%+=-]*")  # a bare ~ would be a home directory to a shell
_LINE_END = re.compile(r"\r\n|\r|\n|\Z")
_CONTINUATION = re.compile(r"\\(?:\r\n|\r|\n|\Z)")
_ESCAPED_IN_DOUBLE = frozenset('"\\$`')


@dataclass(frozen=True)
class _Line:
    """One assignment: where its lines start and end (line end included), and where the value as typed lies."""

    key: str
    value: str
    start: int
    end: int
    value_start: int
    value_end: int


def parse_env(text: str) -> dict[str, str]:
    """The variables that an environment file sets; of one that is set twice, the last.

    Raises:
        VeloError: a quote is opened and never closed.
    """
    return {line.key: line.value for line in _parse_lines(text)}


def render_env(text: str, changes: Mapping[str, str | None]) -> str:
    """The text with these variables set (or, where None, removed) and every other byte as it was.

    A variable keeps its line, its ``export`` and its comment; one that has the wanted value already keeps its
    quotes too. New variables are added at the end, with the file's own line ends, and a file without a final
    line end stays without.

    Raises:
        VeloError: the file has an open quote, or a name or value cannot stand in an environment file.
    """
    for key, value in changes.items():
        _check(key, value)
    lines = _parse_lines(text)
    edits = [edit for key, value in changes.items() for edit in _edits(text, lines, key, value)]
    for start, end, replacement in sorted(edits, reverse=True):
        text = text[:start] + replacement + text[end:]
    present = {line.key for line in lines}
    return _append(text, {key: value for key, value in changes.items() if value is not None and key not in present})


def _check(key: str, value: str | None) -> None:
    if not _KEY.fullmatch(key):
        raise VeloError(f"'{key}' is no name for an environment variable", "use letters, digits and _ only")
    if value is not None and re.search(r"[\0\r\n]", value):
        raise VeloError(f"the value of {key} has a line break in it", "give a value of one line")


def _edits(text: str, lines: list[_Line], key: str, value: str | None) -> list[tuple[int, int, str]]:
    """Replacements (start, end, new text) that give one variable its value."""
    own = [line for line in lines if line.key == key]
    if value is None:
        return [(_removal_start(text, line), line.end, "") for line in own]
    if not own or own[-1].value == value:
        return []
    return [(own[-1].value_start, own[-1].value_end, _quote(value))]


def _removal_start(text: str, line: _Line) -> int:
    """Where to cut: a last line without a line end takes the line end before it along."""
    if line.end < len(text) or text.endswith(("\n", "\r")):
        return line.start
    before = text[: line.start]
    for end in ("\r\n", "\r", "\n"):
        if before.endswith(end):
            return line.start - len(end)
    return line.start


def _append(text: str, added: Mapping[str, str]) -> str:
    if not added:
        return text
    first = _LINE_END.search(text)
    newline = (first.group() if first else "") or "\n"
    body = newline.join(f"{key}={_quote(value)}" for key, value in added.items())
    ended = text.endswith(("\n", "\r")) or text in ("", "\ufeff")
    result = f"{text}{body}{newline}" if ended else f"{text}{newline}{body}"
    if parse_env(result) == {**parse_env(text), **added}:
        return result
    # The last line ended in a backslash and would take ours along: an empty line ends it.
    return f"{text}{newline}{body}{newline}" if ended else f"{text}{newline}{newline}{body}"


def _quote(value: str) -> str:
    """A value as it is written: bare where that is safe, else in double quotes."""
    if _PLAIN.fullmatch(value):
        return value
    return '"' + re.sub(r'(["\\$`])', r"\\\1", value) + '"'


def _parse_lines(text: str) -> list[_Line]:
    found: list[_Line] = []
    at = 1 if text.startswith("\ufeff") else 0
    while at < len(text):
        match = _ASSIGNMENT.match(text, at)
        if match is None:
            at = _next_line(text, at)
            continue
        value, start, value_end = _parse_value(text, match.end())
        end = _next_line(text, value_end)
        found.append(_Line(match.group(1), value, at, end, start, value_end))
        at = end
    return found


def _next_line(text: str, at: int) -> int:
    match = _LINE_END.search(text, at)
    return match.end() if match else len(text)


def _parse_value(text: str, at: int) -> tuple[str, int, int]:
    """The value after a ``=``, and where it starts and ends as typed, without the blanks and comment around it."""
    parts: list[str] = []
    start = end = at
    kept = 0  # the value ends with its last part that is no bare blank
    while at < len(text) and text[at] not in "\r\n":
        char = text[at]
        if char == "#" and text[at - 1] in " \t" and (at > end or not kept):
            break
        if char in " \t":
            parts += [char] if kept else []
            at += 1
            continue
        start = start if kept else at
        piece, at = _parse_piece(text, at)
        parts.append(piece)
        end, kept = at, len(parts)
    return "".join(parts[:kept]), start, end


def _parse_piece(text: str, at: int) -> tuple[str, int]:
    """One quoted part, one escaped character or one plain character, and where the next begins."""
    char = text[at]
    if char == "'":
        close = text.find("'", at + 1)
        if close < 0:
            raise _open_quote(text, at)
        return text[at + 1 : close], close + 1
    if char == '"':
        return _parse_double(text, at)
    if char != "\\":
        return char, at + 1
    return _parse_escape(text, at)


def _parse_escape(text: str, at: int) -> tuple[str, int]:
    """A backslash outside quotes: the next character as it is; before a line end or at the end, nothing at all."""
    match = _CONTINUATION.match(text, at)
    return ("", match.end()) if match else (text[at + 1], at + 2)


def _parse_double(text: str, at: int) -> tuple[str, int]:
    start, parts = at, list[str]()
    at += 1
    while at < len(text):
        char = text[at]
        if char == '"':
            return "".join(parts), at + 1
        match = _CONTINUATION.match(text, at)
        if match is not None:
            at = match.end()
        elif char == "\\" and text[at + 1] in _ESCAPED_IN_DOUBLE:
            parts.append(text[at + 1])
            at += 2
        else:
            parts.append(char)
            at += 1
    raise _open_quote(text, start)


def _open_quote(text: str, at: int) -> VeloError:
    line = text.count("\n", 0, at) + 1
    return VeloError(f"line {line} of the environment file opens a quote that is never closed", "close the quote")
