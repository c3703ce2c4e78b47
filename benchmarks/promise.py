r"""Hold a promise against this machine: an 8B model 2-3 times as fast, its first token within 100 ms, less than half of
the memory, 4-8 users instead of one. The baseline is the F16 file as an engine runs it by default.

    python benchmarks/promise.py make --models DIR -o FILE [--like llama3.2:1b] [--quant q4_0]
    python benchmarks/promise.py run --models DIR -o FILE --llama-server PATH [--rounds 4] [--pieces 1]
    python benchmarks/promise.py show FILE

Models are made: their speed is real, and how predictable the text is and how well the draft agrees are stated. `run`
starts one arm after the other, in turned order from round to round (two of them hardly fit into memory together), keeps
each piece as it is done, and goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from promise_tables import ARMS, DRAFTED, USERS, counts, show

from velollm.autopilot.made import Wish, draw
from velollm.autopilot.meter import MachineMeter
from velollm.backends.base import Completion, ModelRef, RunningServer
from velollm.backends.child import Child
from velollm.backends.guard import guarded
from velollm.backends.llamaargs import render_flags
from velollm.backends.llamabase import serving
from velollm.backends.llamacpp import LlamaCppBackend, free_port
from velollm.bench.exchange import Request, RequestBook, ask, ask_together, settle
from velollm.bench.memory import ServerProcesses
from velollm.bench.sizes import Answer
from velollm.bench.workload import load_workload
from velollm.knobs import Knobs
from velollm.models.gguf import model_facts, read_gguf
from velollm.models.reads import estimate_token_cost
from velollm.models.synthetic import write_model
from velollm.plan import load_profile, make_plan
from velollm.probe.machine import probe_machine
from velollm.probe.speedtest import measure_machine_speed
from velollm.units import GIB, render_bytes

LIKE, DRAFT_LIKE, QUANTIZATION = "llama3.1:8b", "llama3.2:1b", "q4_K_M"
PREDICTABILITY, AGREEMENT, CONTEXT_TOKENS = 0.8, 0.8, 4096
PROMPT_TOKENS, ANSWER, CROWD_ANSWER, GREEDY_TOKENS = 64, Answer(64, 8.0), Answer(8, 600.0), 12
CROWDS = {"f16": (4,), "users": (4, USERS)}
ATTEMPTS, LONG_PIECE_S = 3, 120.0
_DEADLINE_S = 900.0


@dataclass(frozen=True)
class Setting:
    """One arm: which file, with which knobs, with a draft or not."""

    file: str
    knobs: Knobs
    draft: bool = False


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("what", choices=("make", "run", "show"))
    words.add_argument("file", type=Path, nargs="?")
    words.add_argument("--models", type=Path)
    words.add_argument("--like", default=LIKE)
    words.add_argument("--quant", default=QUANTIZATION)
    words.add_argument("--llama-server", type=Path)
    words.add_argument("--rounds", type=int, default=4)
    words.add_argument("--pieces", type=int, default=1, help="how many to do now")
    words.add_argument("-o", "--output", type=Path)
    asked = words.parse_args()
    if asked.what == "show":
        show(json.loads(asked.file.read_text(encoding="utf-8")))
    elif asked.what == "make":
        asked.models.mkdir(parents=True, exist_ok=True)
        document = make(asked.models, asked.like, asked.quant)
        before = json.loads(asked.output.read_text(encoding="utf-8")) if asked.output.exists() else {}
        if before.get("files") == document["files"]:
            # The same models: what was measured with them goes on, with the settings that it began with.
            document |= {"arms": before["arms"], "pieces": before["pieces"]}
        keep(asked.output, document)
    else:
        document = json.loads(asked.output.read_text(encoding="utf-8"))
        for _ in range(asked.pieces):
            if (left := next_piece(document["pieces"], asked.rounds)) is None:
                print("all rounds are done")
                return
            document["pieces"].append(run_piece(document, asked.models, asked.llama_server, *left))
            keep(asked.output, document)


def keep(path: Path, document: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


# Models and settings


def make(directory: Path, like: str, quantization: str) -> dict[str, Any]:
    """The three files, and the settings of each arm as they follow from this machine."""
    main_model, draft = directory / "f16.gguf", directory / "draft.gguf"
    draft_like = DRAFT_LIKE if like == LIKE else None
    wishes = {
        main_model: Wish(family=like, quantization="f16", predictability=PREDICTABILITY),
        directory / "quantized.gguf": Wish(family=like, quantization=quantization, predictability=PREDICTABILITY),
        draft: Wish(family=draft_like, quantization="q4_0", drafts_for=main_model, agreement=AGREEMENT),
    }
    for path, wish in wishes.items():
        if not path.exists():
            write_model(path, draw(wish))
    facts = probe_machine(sample_s=0)
    return {
        "what": "one promise against one machine: benchmarks/promise.py",
        "like": like,
        "quantization": quantization,
        "machine": {
            "processor": facts.cpu.model_name if facts.cpu else None,
            "cores": facts.cpu.usable_cores if facts.cpu else None,
            "memory_bytes": facts.memory.total_bytes if facts.memory else None,
        },
        "assumed": {"predictability": PREDICTABILITY, "agreement": AGREEMENT, "drafted_tokens": DRAFTED},
        "sizes": {
            "prompt_tokens": PROMPT_TOKENS,
            "answer_tokens": ANSWER.tokens,
            "crowd_tokens": CROWD_ANSWER.tokens,
            "greedy_tokens": GREEDY_TOKENS,
        },
        "files": {path.stem: file_fields(path) for path in wishes},
        "arms": {name: asdict(setting) for name, setting in settings(directory).items()},
        "pieces": [],
    }


def file_fields(path: Path) -> dict[str, Any]:
    facts = model_facts(read_gguf(path), path.stem)
    cost = estimate_token_cost(facts, depth_tokens=PROMPT_TOKENS, knobs={})
    assert cost is not None
    return {
        "bytes": path.stat().st_size,
        "parameters": facts.parameters,
        "layers": facts.layers,
        "read_bytes_per_token": cost.read_bytes,
        "operations_per_prompt_token": cost.prompt_operations,
    }


def settings(directory: Path) -> dict[str, Setting]:
    """The engine's own default for the baseline, and what VeloLLM's rules plan for the quantized file; one context."""
    backend = LlamaCppBackend()
    same: Knobs = {"context_tokens": CONTEXT_TOKENS}

    def facts(name: str) -> Any:
        model = model_facts(read_gguf(directory / f"{name}.gguf"), name)
        return probe_machine(sample_s=0).model_copy(update={"model": model})

    def plan(profile: str, pins: Knobs) -> Knobs:
        found = make_plan(facts("quantized"), backend, load_profile(profile), {**same, **pins})
        return {choice.name: choice.value for choice in found.choices if choice.value is not None}

    one = plan("chat", {"slots": 1})
    default = {name: value for name, value in backend.default_knobs(facts("f16")).items() if value is not None}
    return {
        "f16": Setting("f16", {**default, **same}),
        "quantized": Setting("quantized", one),
        "drafted": Setting("quantized", one, draft=True),
        "users": Setting("quantized", plan("team", {"slots": USERS})),
    }


# Measuring


def next_piece(done: Sequence[Mapping[str, Any]], rounds: int) -> tuple[int, str] | None:
    """The first piece that is missing: A B C D, then D C B A, and so on."""
    had = {(piece["round"], piece["arm"]) for piece in done}
    for number in range(rounds):
        for name in ARMS if number % 2 == 0 else ARMS[::-1]:
            if (number, name) not in had:
                return number, name
    return None


def run_piece(document: Mapping[str, Any], models: Path, llama_server: Path, number: int, name: str) -> dict[str, Any]:
    """One arm of one round: start, one user, several users, memory. Every attempt is kept, with what others took."""
    setting = Setting(**document["arms"][name])
    facts = probe_machine()
    free = facts.memory.available_bytes if facts.memory else None
    needed = document["files"][setting.file]["bytes"] + 2 * GIB
    if free is not None and free < needed:
        raise SystemExit(f"{name} needs about {render_bytes(needed)}, and {render_bytes(free)} are free")
    speed = measure_machine_speed(facts)
    began_s = time.monotonic()
    with started(llama_server, models, setting) as server:
        load_s, processes = time.monotonic() - began_s, ServerProcesses(server)
        prompts, attempts = Prompts(server, number), Attempts()
        ask(server, prompts.next(16), Answer(2, 600.0), _DEADLINE_S)
        piece: dict[str, Any] = {
            "round": number,
            "arm": name,
            "taken_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": speed.model_dump() if speed else None,
            "load_s": load_s,
            "loaded_bytes": processes.read_peak_bytes(),
            "singles": attempts(lambda: one_user(server, prompts)),
            "greedy": attempts(lambda: greedy_answer(server, prompts)),
        }
        piece["crowds"] = [
            attempt
            for users in CROWDS.get(name, ())
            for attempt in attempts(partial(several_users, server, prompts, users))
        ]
        piece |= {"peak_bytes": processes.read_peak_bytes(), "buffers": server.buffers()}
    piece["elapsed_s"] = round(time.monotonic() - began_s, 1)
    print(
        json.dumps({key: piece[key] for key in ("round", "arm", "elapsed_s", "singles", "greedy", "crowds")}),
        flush=True,
    )
    return piece


class Prompts:
    """Prompts that the server has never seen: no arm and no attempt gets one twice."""

    def __init__(self, server: RunningServer, number: int) -> None:
        self._server, self._number, self._next = server, number, 0
        self._book = RequestBook(load_workload("chat"), seed=1)

    def next(self, tokens: int = PROMPT_TOKENS) -> Request:
        self._next += 1
        return self._book.request(self._server, self._number, self._next, tokens)


class Attempts:
    """Measures until other programs left the processor alone, up to `ATTEMPTS` times and no more in a long piece."""

    def __init__(self) -> None:
        self._meter, self._began_s = MachineMeter(), time.monotonic()

    def __call__(self, measure: Callable[[], dict[str, Any]]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while len(found) < ATTEMPTS and not any(counts(attempt) for attempt in found):
            if found and time.monotonic() - self._began_s > LONG_PIECE_S:
                break
            self._meter.look()
            figures = measure()
            found.append(figures | {"others_cores": self._meter.look().busy_cores})
        return found


@contextmanager
def started(llama_server: Path, models: Path, setting: Setting) -> Iterator[RunningServer]:
    """The arm's server on loopback."""
    path = models / f"{setting.file}.gguf"
    argv = [str(llama_server), "--model", str(path), "--host", "127.0.0.1", "--port", str(free_port())]
    # Threads that wait awake would keep the cores from the draft's.
    guess: Knobs = {"speculation": "draft-simple", "speculation_tokens": DRAFTED, "polling": 0}
    drafted: Knobs = {**guess, "draft_model": str(models / "draft.gguf")} if setting.draft else {}
    argv += ["--log-verbosity", "4", *render_flags({**setting.knobs, **drafted})]

    def ready(line: str) -> str | None:
        return (
            next((word for word in line.split() if word.startswith("http://")), None) if "listening" in line else None
        )

    child = Child(guarded(argv), log=models / "server.log", ready=ready)
    with serving(child, ModelRef(path.stem, path)) as server:
        yield server


def one_user(server: RunningServer, prompts: Prompts) -> dict[str, Any]:
    """A prompt that the server has never seen, then the same once more."""
    request = prompts.next()
    answer = checked(ask(server, request, ANSWER, _DEADLINE_S))
    if answer.finish == "time":
        settle(server, _DEADLINE_S)
        ask(server, request, Answer(1, 600.0), _DEADLINE_S)
    again = checked(ask(server, request, Answer(1, 600.0), _DEADLINE_S))
    return {
        "prompt_tokens": answer.fresh_prompt_tokens,
        "ttft_s": answer.ttft_s,
        "prompt_s": answer.prompt_s,
        "decode_tokens_per_s": decode_rate(answer),
        "tokens": answer.events[-1][1],
        "drafted_tokens": answer.drafted_tokens,
        "accepted_tokens": answer.accepted_tokens,
        "cached_ttft_s": again.ttft_s,
        "cached_prompt_tokens": again.cached_prompt_tokens,
    }


def greedy_answer(server: RunningServer, prompts: Prompts) -> dict[str, Any]:
    """Always the likeliest token, at the engine's own figures: of a sure text more of a draft is accepted."""
    body = {"prompt": prompts.next(16).prompt, "n_predict": GREEDY_TOKENS, "temperature": 0.0, "ignore_eos": True}
    reply = httpx.post(f"{server.url}/completion", json=body, timeout=_DEADLINE_S, trust_env=False)
    reply.raise_for_status()
    timings = reply.json()["timings"]
    return {name: timings.get(name) for name in ("predicted_n", "predicted_ms", "draft_n", "draft_n_accepted")}


def several_users(server: RunningServer, prompts: Prompts, users: int) -> dict[str, Any]:
    """Users who ask at the same moment, each something of their own."""
    requests = [prompts.next() for _ in range(users)]
    answers = [checked(a) for a in ask_together(server, requests, CROWD_ANSWER, _DEADLINE_S)]
    return {
        "users": users,
        "aggregate_tokens_per_s": sum(a.events[-1][1] for a in answers) / max(a.events[-1][0] for a in answers),
        "ttfts_s": [a.ttft_s for a in answers],
        "decode_tokens_per_s": [decode_rate(a) for a in answers],
        "turns_s": [a.events[-1][0] for a in answers],
    }


def checked(answer: Completion) -> Completion:
    if answer.error or not answer.events:
        raise SystemExit(f"a request failed: {answer.error}")
    return answer


def decode_rate(answer: Completion) -> float | None:
    """Tokens after the first over the time since the first."""
    (first_s, first), (last_s, last) = answer.events[0], answer.events[-1]
    return (last - first) / (last_s - first_s) if last_s > first_s else None


if __name__ == "__main__":
    main()
