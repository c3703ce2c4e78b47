"""Lines of an Ollama server's log, in all the dress they come in (plain, journald, docker)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

_LINE_LIMIT = 400_000
_CHAR_LIMIT = 16 * 1024 * 1024
# Go's slog text handler: key=value, values with blanks are quoted as in Go, keys too ("total vram"="8.0 GiB").
_FIELD = re.compile(r'(?:(?<=\s)|^)(?:"([^"\\=]{1,64})"|([\w.]{1,64}))=("(?:[^"\\]|\\.)*"|[^\s"]*)(?=\s|$)')
_SLOG = re.compile(r"(?:^|\s)(?:time=\S+ )?level=[A-Z]+\S* source=\S+")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}
_ENV_MARK = re.compile(r"[\[\]]|(?:^|(?<= ))([A-Za-z_][A-Za-z0-9_]{0,99}):")


def log_lines(text: str) -> Iterator[str]:
    """Lines of a log; docker's own JSON lines are unpacked."""
    for line in text[:_CHAR_LIMIT].splitlines()[:_LINE_LIMIT]:
        if line.startswith('{"log":'):
            try:
                inner = json.loads(line).get("log")
            except (ValueError, RecursionError, AttributeError):
                inner = None
            yield str(inner).rstrip("\n") if inner is not None else line
        else:
            yield line


def parse_fields(line: str) -> dict[str, str]:
    """``key=value`` pairs of a log line, values without their quotes; a value that was cut off is left out."""
    fields: dict[str, str] = {}
    for quoted_key, key, value in _FIELD.findall(line):
        fields.setdefault(quoted_key or key, _unquoted(value))
    return fields


def _unquoted(value: str) -> str:
    if not value.startswith('"'):
        return value
    return re.sub(r"\\(.)", lambda m: _ESCAPES.get(m.group(1), m.group(1)), value[1:-1])


def is_ollama_line(line: str) -> bool:
    """Was this line written by Ollama itself, not by its child?"""
    return bool(_SLOG.search(line)) or "INFO server config env=" in line


def parse_server_environment(text: str) -> dict[str, str] | None:
    """Settings that the last ``server config`` line of an Ollama log names; None where there is none.

    Up to 0.5 the line was plain text, later a message with ``env=``; both hold Go's ``map[NAME:value …]``.
    Values can hold blanks inside brackets (OLLAMA_ORIGINS), colons and Windows backslashes.
    """
    found: dict[str, str] | None = None
    for line in log_lines(text):
        if "server config" in line:
            start, end = line.find("map["), line.rfind("]")
            if 0 <= start < end:
                body = line[start + 4 : end]
                found = _parsed_map(body.replace("\\\\", "\\"))
    return found


def _parsed_map(body: str) -> dict[str, str]:
    """Names and values of the inside of Go's ``map[…]``; a name inside brackets is part of a value."""
    parsed: dict[str, str] = {}
    name, begin, depth = "", 0, 0
    for match in _ENV_MARK.finditer(body):
        if match.group() == "[":
            depth += 1
        elif match.group() == "]":
            depth = max(0, depth - 1)
        elif depth == 0:
            if name:
                parsed[name] = body[begin : match.start()].strip()
            name, begin = match.group(1), match.end()
    if name:
        parsed[name] = body[begin:].strip()
    return parsed
