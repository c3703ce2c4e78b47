"""What settings gain through a real Ollama, as ratios within one run, on made models.

    python benchmarks/ollama_ratios.py FILE --ollama PATH --work DIR [--only CASE,CASE]

Each case compares the server's default with one setting, on private servers side by side, in balanced turns, and is
written to FILE with its raw figures as soon as it is done. The machine must do nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from velollm.backends.base import Completion
from velollm.backends.ollama_defaults import ollama_default_knobs
from velollm.backends.ollama_http import OllamaServer
from velollm.backends.ollama_own import take_blob, write_manifest
from velollm.backends.ollama_render import render_settings
from velollm.backends.ollama_trial import private_ollama
from velollm.bench.ballast import ballast
from velollm.bench.exchange import RequestBook, ask_together
from velollm.bench.run import balanced_order
from velollm.bench.samples import crowd_figures, decode_rate
from velollm.bench.sizes import Answer
from velollm.bench.stats import Ratio, median_interval, ratio_of_rounds
from velollm.bench.talk import company
from velollm.bench.workload import load_workload
from velollm.facts import Facts
from velollm.knobs import Knobs, KnobValue
from velollm.models.gguf import model_facts
from velollm.models.header import read_gguf
from velollm.models.succession import Succession
from velollm.models.synthetic import SHAPE_1B, Recipe, ensure_model
from velollm.probe.machine import probe_machine

ROUNDS = 4
SHORT, LONG = 16, 100
REPEATING = Recipe("q4_0", succession=Succession(0.995, 97, None, 1))
UNPREDICTABLE = Recipe("q4_0")


class Bench:
    """Models in a store of their own, and private servers over it."""

    def __init__(self, binary: str, work: Path) -> None:
        self.binary, self.work = binary, work
        self.store = work / "store"
        self.store.mkdir(parents=True, exist_ok=True)
        self.facts = probe_machine(sample_s=0)

    def add(self, name: str, path: Path) -> Path:
        """The model under a name in the store; its blob."""
        copy = self.work / f"{name}.tmp"
        copy.unlink(missing_ok=True)
        copy.hardlink_to(path)
        blob = take_blob(self.store, copy, lambda *_: None)
        write_manifest(self.store, name, blob, details={}, parameters={})
        return blob

    @contextmanager
    def server(self, model: str, path: Path, changes: Knobs) -> Iterator[OllamaServer]:
        facts: Facts = self.facts.model_copy(update={"model": model_facts(read_gguf(path), model)})
        default = ollama_default_knobs(facts)
        knobs: dict[str, KnobValue] = {**default, **changes}
        settings = render_settings(knobs, default, None)
        with (
            tempfile.TemporaryDirectory() as logs,
            private_ollama(self.binary, model, self.store, knobs, settings, log=Path(logs) / "server.log") as server,
        ):
            yield server


def compare(
    bench: Bench, model: str, path: Path, changes: Knobs, measure: Callable[[OllamaServer, int], dict[str, float]]
) -> dict[str, Any]:
    """Default and changed in turns; ``measure`` gives a round's figures."""
    rounds: dict[str, list[dict[str, float]]] = {"default": [], "tuned": []}
    with ExitStack() as stack:
        stack.enter_context(ballast())
        servers = {
            "default": stack.enter_context(bench.server(model, path, {})),
            "tuned": stack.enter_context(bench.server(model, path, changes)),
        }
        for server in servers.values():
            measure(server, -1)
        names = list(servers)
        for number in range(ROUNDS):
            for place in balanced_order(2, number):
                rounds[names[place]].append(measure(servers[names[place]], number))
    return {"changes": dict(changes), "rounds": rounds, "ratios": ratios_of(rounds)}


def compare_fresh(
    bench: Bench, model: str, path: Path, changes: Knobs, measure: Callable[[OllamaServer, int], dict[str, float]]
) -> dict[str, Any]:
    """The same with a new server for each round, which has seen no text yet."""
    rounds: dict[str, list[dict[str, float]]] = {"default": [], "tuned": []}
    for number in range(ROUNDS):
        for place in balanced_order(2, number):
            name = ("default", "tuned")[place]
            with bench.server(model, path, changes if place else {}) as server:
                rounds[name].append(measure(server, number))
    return {"changes": dict(changes), "rounds": rounds, "ratios": ratios_of(rounds)}


def ratios_of(rounds: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Each figure's ratio, above 1 where the changed one is better (of times, the shorter)."""
    found: dict[str, Any] = {}
    for name in rounds["default"][0]:
        pairs = [
            ([a[name]], b[name])
            for a, b in zip(rounds["default"], rounds["tuned"], strict=True)
            if a.get(name) and b.get(name)
        ]
        is_time = name.endswith("_s") and not name.endswith("per_s")
        ratio: Ratio = ratio_of_rounds(pairs, higher_is_better=not is_time)
        found[name] = asdict(ratio)
    return found


def one_answer(server: OllamaServer, prompt: str, tokens: int, seed: int) -> Completion:
    found = server.complete(prompt, max_tokens=tokens, seed=seed, deadline_s=120.0)
    assert found.finish != "error", found.error
    return found


def passes(server: OllamaServer, number: int) -> dict[str, float]:
    """Decode of one prompt's answer, and of the same once more."""
    prompt = f"Note {number + 2} of the day, and what followed from it:\n\n"
    rates = [decode_rate(one_answer(server, prompt, 320, 7)) or 0.0 for _ in range(2)]
    return {"first_pass_tokens_per_s": rates[0], "second_pass_tokens_per_s": rates[1]}


def turn(server: OllamaServer, number: int) -> dict[str, float]:
    """One user's turn."""
    book = RequestBook(load_workload("chat"), 3)
    found = one_answer(server, book.request(server, number, 0, 128).prompt, 96, number + 5)
    assert found.ttft_s is not None
    return {"ttft_s": found.ttft_s, "decode_tokens_per_s": decode_rate(found) or 0.0}


def crowd(server: OllamaServer, number: int) -> dict[str, float]:
    """Four users at once, then eight."""
    book = RequestBook(load_workload("chat"), 3)
    figures: dict[str, float] = {}
    for users in (4, 8):
        requests = [book.request(server, number, user, 64) for user in range(users)]
        found = crowd_figures(ask_together(server, requests, Answer(32, 60.0), 180.0))
        assert found.error is None, found.error
        assert found.worst_ttft_s is not None
        figures[f"worst_ttft_{users}_s"] = found.worst_ttft_s
        figures[f"aggregate_{users}_tokens_per_s"] = found.tokens_per_s or 0.0
        figures[f"fairness_{users}"] = found.fairness or 0.0
    return figures


def neighbour(server: OllamaServer, number: int) -> dict[str, float]:
    """A turn while another process keeps a core busy."""
    workload = load_workload("neighbour")
    book = RequestBook(workload, 3)
    request = book.request(server, number, 0, 48)
    with company(workload, server, book, number):
        found = server.complete(request.prompt, max_tokens=48, seed=number + 5, deadline_s=120.0, decode_limit_s=8.0)
    return {"ttft_s": found.ttft_s or 0.0, "decode_tokens_per_s": decode_rate(found) or 0.0}


def first_tokens(bench: Bench, model: str, path: Path) -> dict[str, Any]:
    """TTFT by where the model is: on the disk, in the page cache, loaded; and with the prompt in the cache.

    For a question of `SHORT` tokens and one of `LONG`; besides, what Ollama says of the prefill of a cached prompt.
    """
    rounds: list[dict[str, float]] = []
    with bench.server(model, path, {}) as server:
        book = RequestBook(load_workload("chat"), 4)
        sizes = {"short": SHORT, "long": LONG}
        # All of them first: a server without a model counts no tokens.
        prompts = {
            (number, name): [book.request(server, number, user + 10 * place, tokens).prompt for user in range(3)]
            for number in range(ROUNDS)
            for place, (name, tokens) in enumerate(sizes.items())
        }
        for number in range(ROUNDS):
            found: dict[str, float] = {}
            for name in sizes:
                disk, cold, warm = prompts[number, name]
                assert server.unload()
                forget(path)
                found[f"disk_{name}_s"] = one_answer(server, disk, 4, 1).ttft_s or 0.0
                assert server.unload()
                found[f"cold_{name}_s"] = one_answer(server, cold, 4, 1).ttft_s or 0.0
                found[f"warm_{name}_s"] = one_answer(server, warm, 4, 1).ttft_s or 0.0
                cached = one_answer(server, warm, 4, 1)
                found[f"cached_{name}_s"] = cached.ttft_s or 0.0
            told = (cached.fresh_prompt_tokens or 0) / cached.prompt_s if cached.prompt_s else 0.0
            rounds.append({**found, "cached_prefill_as_told_tokens_per_s": told})
    medians = {name: asdict(median_interval([r[name] for r in rounds])) for name in rounds[0]}
    ratios = {
        f"warm_for_{place}_{name}": asdict(
            ratio_of_rounds([([r[f"{place}_{name}_s"]], r[f"warm_{name}_s"]) for r in rounds], higher_is_better=False)
        )
        for name in sizes
        for place in ("disk", "cold")
    }
    return {"rounds": rounds, "medians": medians, "ratios": ratios, "prompt_tokens": sizes}


def forget(path: Path) -> None:
    """The kernel drops what it holds of a file, as if other programs had needed the memory meanwhile."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("file", type=Path)
    words.add_argument("--ollama", required=True)
    words.add_argument("--work", type=Path, required=True)
    words.add_argument("--models", type=Path, required=True, help="where made-1b-predictable.gguf and its draft are")
    words.add_argument("--only", default="")
    asked = words.parse_args()
    bench = Bench(asked.ollama, asked.work)
    plain = ensure_model(SHAPE_1B, asked.work)
    repeating = ensure_model(replace(SHAPE_1B, name="repeating-1b"), asked.work, REPEATING)
    predictable = asked.models / "made-1b-predictable.gguf"
    draft = bench.add("draft", asked.models / "made-1b-predictable-draft.gguf")
    blobs = {name: bench.add(name, path) for name, path in
             {"plain": plain, "repeating": repeating, "predictable": predictable}.items()}  # fmt: skip
    ngram: Knobs = {"speculation": "ngram-mod", "speculation_tokens": 16, "speculation_match": 8}
    with_draft: Knobs = {
        "speculation": "draft-simple", "speculation_tokens": 3, "draft_model": str(draft), "polling": 0
    }  # fmt: skip
    cases: dict[str, Callable[[], dict[str, Any]]] = {
        "first-tokens": lambda: first_tokens(bench, "plain", blobs["plain"]),
        "repeating": lambda: compare_fresh(bench, "repeating", blobs["repeating"], ngram, passes),
        "unpredictable-guessed": lambda: compare(bench, "plain", blobs["plain"], ngram, turn),
        "draft": lambda: compare(bench, "predictable", blobs["predictable"], with_draft, turn),
        "draft-polling": lambda: compare(
            bench, "predictable", blobs["predictable"], {**with_draft, "polling": None}, turn
        ),
        "crowd": lambda: compare(bench, "plain", blobs["plain"], {"slots": 4}, crowd),
        "crowd-8-slots": lambda: compare(bench, "plain", blobs["plain"], {"slots": 8}, crowd),
        "neighbour": lambda: compare(bench, "plain", blobs["plain"], {"threads": 1}, neighbour),
    }
    document = json.loads(asked.file.read_text(encoding="utf-8")) if asked.file.exists() else {"cases": {}}
    document["machine"] = {"cpu": bench.facts.cpu.model_dump() if bench.facts.cpu else None}
    for name, run in cases.items():
        if asked.only and name not in asked.only.split(","):
            continue
        document["cases"][name] = run()
        asked.file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        for figure, ratio in document["cases"][name]["ratios"].items():
            span = "" if ratio["low"] is None else f" ({ratio['low']:.2f}-{ratio['high']:.2f})"
            print(f"{name}: {figure} {ratio['estimate']:.2f}x{span}", flush=True)


if __name__ == "__main__":
    main()
