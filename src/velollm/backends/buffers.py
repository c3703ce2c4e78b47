"""What an engine allocated, as its log says it: ``CPU_REPACK model buffer size = 512.00 MiB`` and the like.

Source: llama.cpp b10488, src/llama-model.cpp, src/llama-kv-cache.cpp, src/llama-memory-recurrent.cpp and
src/llama-context.cpp. Two digits after the point: sums are right to some 10 KiB.
"""

from __future__ import annotations

import re

from velollm.units import MIB

_LINE = re.compile(r"(\S+)\s+(model|KV|RS|output|compute) buffer size\s*=\s*([\d.]{1,20}) MiB")
# From here on a draft model is loaded, or MTP layers get buffers of their own (common/speculative.cpp:2396 and 2416).
_DRAFT = re.compile(r"loading draft model '|creating MTP draft context against ")
_GUESSES = "speculative decoding context initialized"
# What a projector of pictures computes in (tools/mtmd/clip.cpp:3665).
_PICTURES = "reserve_compute_meta:"
_LOAD = re.compile(r"print_info: no_alloc\s*=\s*(\d)")
_BUILD = re.compile(r"common_params_print_info: build ([^\n]{1,200})")
_NUMBER = re.compile(r"common_params_print_info: build (\d{1,9})\b")
_OLLAMA = re.compile(r"Listening on \S+ \(version (\S{1,40})\)")
_NAMES = {"model": "weights", "KV": "kv", "RS": "recurrent", "output": "output", "compute": "compute"}
_STARTS = ("starting llama-server", "common_params_print_info: build")
_HOST = re.compile(r"^(?:CPU|AMX|BLAS)|_Host$")
CPU = "CPU"


def parse_device_buffers(log: str) -> dict[str, dict[str, int]]:
    """Bytes by device and kind: main memory as ``CPU``, GPUs as the engine calls them (``CUDA0``).

    Kinds are the terms of an estimate, ``draft`` (all of a draft model, or of MTP layers all but their weights) and
    ``picture`` (what a projector computes in). Those that the log does not name are absent. A load that only looks at
    what would fit (``no_alloc``) is passed over. A compute buffer that is named again for the same model replaces what
    was said before.
    """
    found: dict[str, dict[str, int]] = {}
    compute: dict[tuple[int, str, str], int] = {}
    loads, own, dry, draft = 0, 0, False, False

    def add(place: str, term: str, number: int) -> None:
        terms = found.setdefault(_device(place), {})
        terms[term] = terms.get(term, 0) + number

    for line in _latest(log).splitlines():
        if not draft and _DRAFT.search(line):
            own, draft = loads, True
        elif draft and _GUESSES in line:
            # A model whose states a draft reads computes its own buffer anew at the first prompt.
            loads, draft = own, False
        if started := _LOAD.search(line):
            loads, dry = loads + 1, started.group(1) != "0"
        match = _LINE.search(line)
        if match is None:
            continue
        place, kind, size = match.groups()
        number = round(float(size) * MIB) if size.count(".") < 2 else 0
        if kind == "compute" and _PICTURES in line:
            compute[0, place, "picture"] = number
        elif dry:
            continue
        elif kind == "compute":
            compute[loads, place, "draft" if draft else "compute"] = number
        else:
            term = "repack" if kind == "model" and place.endswith("REPACK") else _NAMES[kind]
            add(place, "draft" if draft else term, number)
    for (_, place, term), number in compute.items():
        add(place, term, number)
    return found


def _latest(log: str) -> str:
    """From the last start of an engine on: a server's log holds every load that it did."""
    return log[max(log.rfind(mark) for mark in _STARTS) :] if any(mark in log for mark in _STARTS) else log


def _device(place: str) -> str:
    return CPU if _HOST.search(place) else place.removesuffix("_Mapped").removesuffix("_Split")


def parse_buffers(log: str) -> dict[str, int]:
    """The same over all devices."""
    found: dict[str, int] = {}
    for terms in parse_device_buffers(log).values():
        for term, number in terms.items():
            found[term] = found.get(term, 0) + number
    return found


def parse_versions(log: str) -> tuple[str | None, str | None]:
    """The version of Ollama and the release of llama.cpp (``b10488``) that a log names; None where it names none.

    An engine that was not built from a release calls itself build 0.
    """
    ollama, build = _OLLAMA.search(log), _NUMBER.search(_latest(log))
    release = None if build is None or int(build.group(1)) == 0 else f"b{int(build.group(1))}"
    return ollama.group(1) if ollama else None, release


def parse_build(log: str) -> str | None:
    """The engine's build as it names itself, as one word; None where the log does not tell.

    Ollama's version comes before it where the engine is Ollama's.
    """
    match, ollama = _BUILD.search(_latest(log)), _OLLAMA.search(log)
    if match is None:
        return None
    words = [f"ollama-{ollama.group(1)}"] if ollama else []
    return "_".join([*words, *match.group(1).split()])
