"""The environment in systemd's words: drop-in files, and what `systemctl show` prints.

Quoting: systemd v252 src/basic/extract-word.c (`extract_first_word` with EXTRACT_CUNESCAPE and EXTRACT_UNQUOTE, as
src/core/load-fragment.c, `config_parse_environ` calls it), then specifiers (systemd.unit(5)); a dollar means nothing
in ``Environment=``. Printing: src/shared/bus-print-properties.c and src/basic/escape.c, `shell_maybe_quote`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from velollm.errors import VeloError

HEADER = "# Written by VeloLLM: `velollm undo` takes it back. Put settings of your own into another file.\n"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECTION = re.compile(r"\[([^\]]*)\]\s*")
_BLANKS = " \t\n\r"
_LETTERS = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "s": " "}
_NUMBERS = (("x", 2, 16), ("u", 4, 16), ("U", 8, 16), ("", 3, 8))


def quote_assignment(name: str, value: str) -> str:
    """One ``NAME=value`` as it stands after ``Environment=``.

    Raises:
        VeloError: systemd would drop it: a wrong name, a control character, no UTF-8.
    """
    if not _NAME.fullmatch(name):
        raise VeloError(f"'{name}' is no name for an environment variable", "use letters, digits and _ only")
    if re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", value):
        raise VeloError(f"the value of {name} has a line break or control character in it", "give a plain value")
    text = f"{name}={value}".replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{text}"'


def unit_line(name: str, value: str | None) -> str:
    """The line that sets a variable, or, where None, takes it from whatever else sets it.

    An empty value would be one to the program. ``UnsetEnvironment=`` comes last of all, after every
    ``EnvironmentFile=`` too (systemd.exec(5)). Raises `VeloError` as `quote_assignment` does.
    """
    assignment = quote_assignment(name, value or "")
    return f"UnsetEnvironment={name}" if value is None else f"Environment={assignment}"


def render_dropin(environment: Mapping[str, str | None], header: str = HEADER) -> str:
    """A drop-in with a `unit_line` for each variable, those that set one first."""
    ordered = sorted(environment.items(), key=lambda pair: pair[1] is None)
    lines = [f"{unit_line(name, value)}\n" for name, value in ordered]
    return f"{header}[Service]\n{''.join(lines)}"


def parse_dropin(text: str) -> dict[str, str]:
    """The variables that a unit file or drop-in sets in ``[Service]``; an empty ``Environment=`` forgets those before.

    What systemd would ignore is left out. A specifier other than ``%%`` stays as typed, since only systemd knows it.
    """
    found: dict[str, str] = {}
    for section, key, value in _directives(text):
        if (section, key) != ("Service", "Environment"):
            continue
        if not value:
            found.clear()
        found.update(_assignments(value))
    return found


def parse_unset(text: str) -> tuple[str, ...]:
    """The variables that a unit file or drop-in takes away by name, whatever their value."""
    found: list[str] = []
    for section, key, value in _directives(text):
        if (section, key) != ("Service", "UnsetEnvironment"):
            continue
        if not value:
            found.clear()
        found += [word for word in split_words(value)[0] if _NAME.fullmatch(word)]
    return tuple(dict.fromkeys(found))


def _assignments(value: str) -> dict[str, str]:
    words, _ = split_words(value)
    pairs = (word.replace("%%", "%").partition("=") for word in words)
    return {name: text for name, equals, text in pairs if equals and _NAME.fullmatch(name)}


def _directives(text: str) -> Iterator[tuple[str, str, str]]:
    """(section, key, value) of each line; a line that ends in a backslash goes on, and comments do not break it."""
    section, pending = "", ""
    for line in re.split(r"\r\n|\r|\n", text):
        if line.lstrip(_BLANKS).startswith(("#", ";")):
            continue
        if line.endswith("\\"):
            pending += line[:-1] + " "
            continue
        whole, pending = (pending + line).strip(_BLANKS), ""
        if match := _SECTION.fullmatch(whole):
            section = match.group(1)
        elif "=" in whole:
            key, _, value = whole.partition("=")
            yield section, key.strip(_BLANKS), value.strip(_BLANKS)


def split_words(text: str) -> tuple[list[str], bool]:
    """Words of a value, unquoted and unescaped, and whether all of it could be read: systemd stops where not."""
    words: list[str] = []
    at = 0
    while True:
        while at < len(text) and text[at] in _BLANKS:
            at += 1
        if at >= len(text):
            return words, True
        found = _word(text, at)
        if found is None:
            return words, False
        words.append(found[0])
        at = found[1]


def _word(text: str, at: int) -> tuple[str, int] | None:
    parts: list[str] = []
    quote = ""
    while at < len(text):
        char = text[at]
        if char == "\\":
            escape = _escape(text, at + 1)
            if escape is None:
                return None
            parts.append(escape[0])
            at = escape[1]
            continue
        at += 1
        if quote:
            if char == quote:
                quote = ""
            else:
                parts.append(char)
        elif char in "\"'":
            quote = char
        elif char in _BLANKS:
            break
        else:
            parts.append(char)
    return None if quote else ("".join(parts), at)


def _escape(text: str, at: int) -> tuple[str, int] | None:
    """The character that stands after a backslash, and where the text goes on; None where there is no such escape."""
    letter = text[at : at + 1]
    if letter and letter in "\\\"'":
        return letter, at + 1
    if letter in _LETTERS:
        return _LETTERS[letter], at + 1
    for prefix, count, base in _NUMBERS:
        start = at + len(prefix)
        digits = text[start : start + count]
        if text.startswith(prefix, at) and re.fullmatch(rf"[0-7]{{{count}}}" if base == 8 else r"[0-9a-fA-F]+", digits):
            code = int(digits, base)
            known = len(digits) == count and 0 < code < 0x110000 and not 0xD800 <= code < 0xE000
            return (chr(code), start + count) if known else None
    return None


def parse_show_environment(value: str) -> dict[str, str]:
    """Variables of the ``Environment=`` property as `systemctl show` prints it.

    Words apart by one blank; one with a special character is in double quotes, with a backslash before ``"``, ``\\``,
    `````, ``$`` and control characters in C's manner. Older versions left characters out, so nothing is refused.
    """
    pairs = (word.partition("=") for word in _shown_words(value))
    return {name: text for name, equals, text in pairs if equals and _NAME.fullmatch(name)}


_SHOWN = re.compile(r'"((?:[^"\\]|\\.)*)"(?= |\Z)|([^ ]+)', re.DOTALL)
_SHOWN_ESCAPE = re.compile(r"\\([0-7]{3}|.)", re.DOTALL)


def _shown_words(value: str) -> Iterator[str]:
    for match in _SHOWN.finditer(value):
        quoted, plain = match.groups()
        yield plain if quoted is None else _SHOWN_ESCAPE.sub(_shown_character, quoted)


def _shown_character(match: re.Match[str]) -> str:
    text = match.group(1)
    return chr(int(text, 8)) if len(text) == 3 else _LETTERS.get(text, text)
