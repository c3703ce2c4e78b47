"""Text of environment variables as Ollama's own language reads it."""

from __future__ import annotations

import re

_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})
_DURATION = re.compile(r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:ns|us|µs|μs|ms|s|m|h))+")


def clean(text: str) -> str:
    """A value without the blanks and quotes that Ollama trims (envconfig/config.go:375)."""
    return text.strip("\"' \t\r\n")


def parse_bool(text: str) -> bool | None:
    """Go's strconv.ParseBool; None where it is an error (``auto``, ``on``, ``yes``)."""
    if text in _TRUE:
        return True
    return False if text in _FALSE else None


def is_uint(text: str) -> bool:
    """Does Go's strconv.ParseUint(text, 10, 64) take it?"""
    return text.isascii() and text.isdigit() and len(text) <= 20 and int(text) < 2**64


def is_duration(text: str) -> bool:
    """Does Go's time.ParseDuration take it, or is it a whole number of seconds?"""
    return text in ("0", "+0", "-0") or bool(_DURATION.fullmatch(text)) or bool(re.fullmatch(r"[+-]?\d{1,18}", text))
