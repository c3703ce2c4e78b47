"""What a server log of Ollama 0.30 and later tells of its child llama-server.

Line shapes: Ollama v0.33.0-rc2 llm/llama_server.go:433 (`starting llama-server`), llama.cpp b10488 common/common.cpp
(`system_info`), src/llama-context.cpp, src/llama-kv-cache.cpp, tools/server/server-context.cpp (an answer's times and
`draft acceptance`: :599-632), common/speculative.cpp:2793 (`statistics`, sums since the load).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from velollm.backends.child import NO_FAILURE

_START = re.compile(r'msg="starting llama-server" cmd="((?:[^"\\]|\\.)*)"')
_LISTENING = re.compile(r'msg="Listening on (\S+) \(version ([^)]*)\)"')
_TRUNCATED = re.compile(r'msg="truncating input prompt" limit=(\d+) prompt=(\d+) keep=(\d+) new=(\d+)')
_PATTERNS = {
    "threads": re.compile(r"system_info: n_threads = (\d+)"),
    "slots": re.compile(r"n_slots = (\d+)"),
    "context_tokens": re.compile(r"n_ctx_slot = (\d+)"),
    "batch": re.compile(r"llama_context: n_batch\s+= (\d+)"),
    "ubatch": re.compile(r"llama_context: n_ubatch\s+= (\d+)"),
    "kv_type_k": re.compile(r"\bK \((\w+)\):"),
    "kv_type_v": re.compile(r"\bV \((\w+)\):"),
    "flash_attention": re.compile(r"llama_context: flash_attn\s+= (\w+)"),
    "kv_unified": re.compile(r"llama_context: kv_unified\s+= (\w+)"),
    "gpu_layers": re.compile(r"offloaded (\d+)/\d+ layers to GPU"),
    "total_layers": re.compile(r"offloaded \d+/(\d+) layers to GPU"),
}
_SWITCHES = {"true": "on", "false": "off"}
_SPECULATION = re.compile(r"adding speculative implementation '([\w-]+)'")
_DECODED = re.compile(r"(\bid +\d{1,9} \| task +\d{1,18} \|) +eval time = +(\d{1,12}\.\d{1,6}) ms / +(\d{1,9}) tokens")
_ACCEPTED = re.compile(
    r"(\bid +\d{1,9} \| task +\d{1,18} \|) draft acceptance = \S+ \( *(\d{1,9}) accepted / *(\d{1,9}) generated\)"
)
_STATISTICS = re.compile(r"\bstatistics +([\w-]{1,32}): .*?\bdur\(b,g,a\) = [\d.]{1,16}, ([\d.]{1,16}), [\d.]{1,16} ms")
_FAILURES = (
    re.compile(r"(GGML_ASSERT\(.*)"),
    re.compile(r"(?:^|\s)(error while handling .*|error: .*|invalid argument: .*)"),
    re.compile(r"(quantized V cache .*|context type MTP requested .*|.*out of memory.*|.*failed to allocate.*)", re.I),
    re.compile(r"((?:llama_model_load|llama_init_from_model|srv\s+load_model): (?:error|failed).*)"),
    re.compile(r"(Unsupported cache type: .*|.*failed to initialize the context.*)"),
)


@dataclass(frozen=True)
class Load:
    """One start of a child: its command line, and what it said it runs with (None: it did not get that far)."""

    argv: tuple[str, ...]
    values: dict[str, int | str] = field(default_factory=dict)
    speculation: tuple[str, ...] = ()
    text: str = ""

    def flag(self, name: str) -> str | None:
        """Value of a command-line flag of the child."""
        try:
            return self.argv[self.argv.index(name) + 1]
        except (ValueError, IndexError):
            return None

    @property
    def url(self) -> str | None:
        """The child's own address on loopback."""
        port = self.flag("--port")
        return f"http://127.0.0.1:{port}" if port else None


def parse_listening(line: str) -> str | None:
    """Address (host:port) of the line that says that the server listens."""
    match = _LISTENING.search(line)
    return match.group(1) if match else None


def parse_loads(text: str) -> list[Load]:
    """Every start of a child in a log, oldest first."""
    starts = list(_START.finditer(text))
    ends = [*(match.start() for match in starts[1:]), len(text)]
    return [_parse_load(match.group(1), text[match.end() : end]) for match, end in zip(starts, ends, strict=False)]


def _parse_load(command: str, text: str) -> Load:
    values: dict[str, int | str] = {}
    for name, pattern in _PATTERNS.items():
        if (match := pattern.search(text)) is not None:
            values[name] = int(match.group(1)) if match.group(1).isdecimal() else match.group(1)
    if "kv_unified" in values:
        values["kv_unified"] = _SWITCHES.get(str(values["kv_unified"]), str(values["kv_unified"]))
    try:
        argv = tuple(shlex.split(command.replace('\\"', '"')))
    except ValueError:
        argv = tuple(command.split())
    return Load(argv, values, tuple(dict.fromkeys(_SPECULATION.findall(text))), text)


def parse_failure(text: str) -> str | None:
    """Why the last load failed, in the engine's own words, where the log has them."""
    # Lines of the child only: the server's own repeat them in quotes.
    lines = [line for line in text.splitlines() if not line.startswith("time=") and NO_FAILURE not in line]
    for pattern in _FAILURES:
        found = [match for line in lines if (match := pattern.search(line))]
        if found:
            return found[-1].group(1).strip()[:300]
    return None


@dataclass(frozen=True)
class DraftedAnswer:
    """One answer for which tokens were guessed ahead. ``tokens``: written after the first.

    ``drafting_s``: what the guesses took (None: the engine did not say); with several slots, those of answers
    meanwhile too.
    """

    tokens: int
    decode_s: float
    drafted: int
    accepted: int
    drafting_s: float | None = None


def parse_drafted_answers(lines: Iterable[str]) -> list[DraftedAnswer]:
    """The answers of one load for which tokens were guessed, oldest first."""
    found: list[DraftedAnswer] = []
    decoded: dict[str, tuple[float, int]] = {}
    spent_ms: dict[str, float] = {}
    current = False
    for line in lines:
        if match := _DECODED.search(line):
            decoded[match.group(1)] = (float(match.group(2)), int(match.group(3)))
            current = False
        elif match := _ACCEPTED.search(line):
            took_ms, tokens = decoded.pop(match.group(1), (0.0, 0))
            accepted, drafted = int(match.group(2)), int(match.group(3))
            current = tokens > 1 and drafted > 0
            if current:
                # The engine counts the first token, whose time is the prompt's.
                found.append(DraftedAnswer(tokens - 1, took_ms / 1000.0, drafted, accepted))
        elif match := _STATISTICS.search(line):
            more_s = max(0.0, _number(match.group(2)) - spent_ms.get(match.group(1), 0.0)) / 1000.0
            spent_ms[match.group(1)] = _number(match.group(2))
            if current:
                found[-1] = replace(found[-1], drafting_s=(found[-1].drafting_s or 0.0) + more_s)
    return found


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def parse_speculation(lines: Iterable[str]) -> tuple[str, ...]:
    """The kinds of speculation that an engine loaded, in the order in which they are asked."""
    found = (match for line in lines if (match := _SPECULATION.search(line)))
    return tuple(dict.fromkeys(match.group(1) for match in found))


def parse_truncations(text: str) -> list[tuple[int, int, int]]:
    """Prompts that were cut without the client being told: (limit, prompt tokens, tokens that were left)."""
    return [(int(m.group(1)), int(m.group(2)), int(m.group(4))) for m in _TRUNCATED.finditer(text)]
