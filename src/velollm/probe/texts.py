"""Small parsers that several readers share. None of them raises on damaged text."""

from __future__ import annotations

import re
from collections.abc import Iterator

from velollm.probe.source import Source, TextSource

_MASK = re.compile(r"[0-9A-Fa-f]{1,16}(?:,[0-9A-Fa-f]{1,16})*")
_MASK_LIMIT = 32 * 1024
_INTEGER = re.compile(r"[+-]?\d{1,19}")


def parse_int(text: str | None) -> int | None:
    """A whole number of at most 19 digits; None for anything else."""
    if text is None or not _INTEGER.fullmatch(text := text.strip()):
        return None
    return int(text)


def parse_float(text: str | None) -> float | None:
    """A finite number, with a decimal point or a decimal comma (lscpu prints ``1479,0000`` in some locales)."""
    if text is None or not re.fullmatch(r"\d{1,15}(?:[.,]\d{1,15})?", text := text.strip()):
        return None
    return float(text.replace(",", "."))


def parse_cpu_mask(text: str) -> frozenset[int] | None:
    """CPU numbers of a kernel mask: 32-bit hex words, the most significant first (``00000003,f0000000``).

    None where the text is no mask or longer than 32 KiB (far more CPUs than a kernel can have).
    """
    text = text.strip()
    if len(text) > _MASK_LIMIT or not _MASK.fullmatch(text):
        return None
    words = text.split(",")
    digits = words[0] + "".join(word.zfill(8) for word in words[1:])
    bits = f"{int(digits, 16):b}"[::-1]
    return frozenset(i for i, bit in enumerate(bits) if bit == "1")


def parse_pairs(text: str) -> Iterator[tuple[str, str]]:
    """Name and value of each ``name : value`` or ``name=value`` line, both without outer blanks."""
    for line in text.splitlines():
        match = re.search(r"[:=]", line)
        if match is not None and (name := line[: match.start()].strip()):
            yield name, line[match.end() :].strip()


def parse_blocks(text: str) -> list[dict[str, str]]:
    """Blocks of ``name : value`` lines between empty lines, without empty blocks."""
    blocks = (dict(parse_pairs(block)) for block in re.split(r"\n\s*\n", text.replace("\r\n", "\n")))
    return [block for block in blocks if block]


def read_value(source: Source, path: str) -> str | None:
    """Text of a file with one value, without outer blanks; None where it is missing or empty."""
    text = source.read(path)
    return text.strip("\x00 \t\r\n") or None if text is not None else None


def read_command(source: Source, *argv: str) -> str | None:
    """Output of a command; of a captured machine, all outputs of the same program, however it was called."""
    if not isinstance(source, TextSource):
        return source.run(argv)
    exact = source.run(argv)
    if exact is not None:
        return exact
    texts = [text for name, text in sorted(source.commands.items()) if name.split(" ")[0] == argv[0]]
    return "\n".join(texts) or None


def captured_command(source: Source, *argv: str) -> str | None:
    """Output of a command that is never run by a probe, only read where somebody captured it."""
    return None if source.live else source.run(argv)
