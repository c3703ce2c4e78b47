"""How far from the best of a grid does the tuner end? An exhaustive sweep against a race of three minutes.

    PATH=DIR-OF-llama-server:$PATH python benchmarks/regret.py FILE --models DIR [--minutes N] [--only MODEL/PROFILE]
    python benchmarks/regret.py FILE --show

For each model and profile: every setting of a grid is measured, in an order drawn anew for each pass; the best of them,
none more than a tenth behind, once more. Then `velollm tune` runs as a user would run it. In the end the tuner's
choice, the best two of the grid and the engine's default answer the same prompts in turns: the regret is the figure
of the better of these two (in each round the one that is better by the others) over the choice's, less one, with its
95% interval over rounds. Where the choice is one of the two, it runs once.
Everything is written after each step, so that a run can be ended at any time and gone on with; ``--minutes`` begins no
new step after that time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from velollm.autopilot import Order, RaceWish, tune
from velollm.backends import llamacpp
from velollm.backends.base import ModelRef, RunningServer
from velollm.backends.llamacpp import LlamaCppBackend
from velollm.bench.run import balanced_order
from velollm.bench.samples import Sample
from velollm.bench.stats import ratio_of_rounds
from velollm.bench.workload import load_workload
from velollm.errors import VeloError
from velollm.facts import Facts
from velollm.knobs import Knobs, KnobValue
from velollm.models.gguf import model_facts
from velollm.models.header import read_gguf
from velollm.plan import load_profile, make_plan
from velollm.probe.machine import probe_machine
from velollm.tune.objective import objective_of
from velollm.tune.track import Track

MODELS: dict[str, str | None] = {
    "made-0.2b": None,
    "made-1b-predictable": "made-1b-predictable-draft",
    "made-moe": None,
    "made-granitehybrid-350m": None,
}
PROFILES = ("chat", "code", "team")
# Also with and without flash attention; of the others a grid takes too long.
WIDE = frozenset({"made-0.2b"})
PASSES = 2
SAMPLES = 2
KEPT, MOST_KEPT = 0.9, 6
FINALISTS, FINAL_ROUNDS = 2, 7
TUNER_S = 180.0
TRACK_S = 60.0
NO_GUESS: dict[str, KnobValue] = {
    "speculation": "none", "speculation_tokens": None, "speculation_match": None, "draft_model": None, "polling": None
}  # fmt: skip


# Named by its path it has all knobs, as where it plays the part of Ollama's engine.
ENGINE = LlamaCppBackend(shutil.which("llama-server"))
llamacpp.backend = ENGINE


class Cockpit:
    """Prints what stays."""

    def __call__(self, done: float, text: str, left_s: float | None = None, /) -> None: ...

    def note(self, text: str) -> None:
        print(f"    {text}", flush=True)

    def ask(self, question: str) -> bool:
        return False


class Cell:
    """One model and profile: its grid, and how to measure a setting."""

    def __init__(self, models: Path, model: str, profile: str) -> None:
        self.path = models / f"{model}.gguf"
        draft = MODELS[model]
        self.draft = None if draft is None else models / f"{draft}.gguf"
        self.profile = load_profile(profile)
        self.workload = load_workload(self.profile.workload)
        self.objective = objective_of(self.profile, self.workload)
        self.backend = ENGINE
        self.facts = idle(probe_machine(sample_s=0)).model_copy(
            update={"model": model_facts(read_gguf(self.path), self.path.stem)}
        )
        plan = make_plan(self.facts, self.backend, self.profile)
        self.base: dict[str, KnobValue] = {**plan.knobs, **NO_GUESS}
        self.default = dict(plan.defaults)

    def grid(self) -> list[dict[str, KnobValue]]:
        """Overlays of the base: threads, guesses, batches, and for several users slots."""
        guesses: list[dict[str, KnobValue]] = [NO_GUESS]
        guesses.append({**NO_GUESS, "speculation": "ngram-mod", "speculation_tokens": 16, "speculation_match": 8})
        team = self.objective.users > 0
        if self.draft is not None:
            guesses.append({**NO_GUESS, "speculation": "draft-simple", "speculation_tokens": 3, "polling": 0})
            guesses[-1]["draft_model"] = str(self.draft)
        elif not team:
            guesses.append({**NO_GUESS, "speculation": "ngram-map-k", "speculation_tokens": 16, "speculation_match": 6})
        batches: list[dict[str, KnobValue]] = [{"batch": n, "ubatch": n} for n in ((512,) if team else (128, 512))]
        slots: list[dict[str, KnobValue]] = [{"slots": n} for n in ((2, 4, 8) if team else (1,))]
        threads: list[dict[str, KnobValue]] = [{"threads": n} for n in (1, 2)]
        flash: list[dict[str, KnobValue]] = (
            [{"flash_attention": word} for word in ("auto", "off")] if self.path.stem in WIDE and not team else [{}]
        )
        found = [{**a, **b, **c, **d, **e} for a, b, c, d, e in product(threads, guesses, batches, slots, flash)]
        assert len(found) <= 24
        return found

    @contextlib.contextmanager
    def track(self, seed: int, start: Callable[[str, Knobs], Any] | None = None) -> Iterator[Track]:
        context = self.base["context_tokens"]
        assert isinstance(context, int)
        with (
            tempfile.TemporaryDirectory() as logs,
            Track(
                start or (lambda name, knobs: self.start(knobs, Path(logs) / f"{name}.log")),
                self.workload,
                users=self.objective.users,
                budget_s=TRACK_S,
                context_tokens=min(context, 4096),
                side_by_side=lambda count: count <= 4,
                seed=seed,
            ) as track,
        ):
            yield track

    def start(self, knobs: Knobs, log: Path) -> contextlib.AbstractContextManager[RunningServer]:
        return self.backend.trial(ModelRef(self.path.name, self.path), knobs, self.facts, log=log)

    def visit(self, overlay: Knobs, seed: int) -> list[float]:
        """Some figures of one setting, from a server of its own."""
        with self.track(seed) as track:
            track.enter("one", {**self.base, **overlay})
            samples = [s for _ in range(SAMPLES) for s in track.measure("one", track.next_rounds(), "speculation")]
        return [score for sample in samples if (score := self.objective.score(sample))]

    def compare(self, arms: dict[str, Knobs], seed: int) -> dict[str, list[float | None]]:
        """Figures of several settings on the same prompts, in turns."""
        found: dict[str, list[float | None]] = {name: [] for name in arms}
        names = list(arms)
        with self.track(seed) as track:
            for name, knobs in arms.items():
                track.enter(name, knobs)
            for number in range(FINAL_ROUNDS):
                rounds = track.next_rounds()
                for place in balanced_order(len(names), number):
                    (sample,) = track.measure(names[place], rounds, "speculation")
                    found[names[place]].append(self._score(sample))
        return found

    def _score(self, sample: Sample) -> float | None:
        return self.objective.score(sample)


def idle(facts: Facts) -> Facts:
    """The machine as if nothing else had run on it of late: what the study itself did is no neighbour."""
    load = facts.load.model_copy(update={"busy_cores_now": 0.0, "load_15m": 0.0}) if facts.load else None
    return facts.model_copy(update={"load": load})


def sweep(cell: Cell, found: dict[str, Any], save: Callable[[], None], until_s: float) -> bool:
    """The next visits of a cell's sweep; is it complete?"""
    grid = cell.grid()
    visits = found.setdefault("visits", [])
    for number in range(PASSES):
        order = list(range(len(grid))) if not number else leaders(visits, len(grid), MOST_KEPT, KEPT)
        random.Random(f"{cell.path.stem}/{cell.profile.name}/{number}").shuffle(order)
        for index in order:
            if any(v["pass"] == number and v["index"] == index for v in visits):
                continue
            if time.monotonic() >= until_s:
                return False
            try:
                scores, failed = cell.visit(grid[index], seed=number), None
            except VeloError as error:
                scores, failed = [], error.message
            visits.append({"pass": number, "index": index, "scores": scores, "error": failed})
            save()
    return True


def leaders(visits: list[dict[str, Any]], count: int, most: int, kept: float) -> list[int]:
    """The best settings by the first pass, best first."""
    found = {index: figure for index in range(count) if (figure := figure_of(visits, index, before=1))}
    order = sorted(found, key=lambda index: -found[index])[:most]
    return [index for index in order if found[index] >= kept * found[order[0]]]


def figure_of(visits: list[dict[str, Any]], index: int, before: int = PASSES) -> float | None:
    """The median figure of one setting over its visits."""
    scores = [s for v in visits if v["index"] == index and v["pass"] < before for s in v["scores"]]
    return median(scores) if scores else None


def run_tuner(cell: Cell) -> dict[str, Any]:
    """`velollm tune` with a home of its own."""
    with tempfile.TemporaryDirectory() as home:
        os.environ["VELOLLM_HOME"] = home
        order = Order(
            str(cell.path),
            "llamacpp",
            cell.profile.name,
            budget_s=TUNER_S,
            probe=lambda: idle(probe_machine(sample_s=0)),
        )
        began_s = time.monotonic()
        drafts = () if cell.draft is None else (cell.draft,)
        tuning = tune(order, RaceWish(drafts=drafts), Cockpit())
        race = tuning.race if tuning.kept is None else tuning.kept.race
        return {
            "elapsed_s": round(time.monotonic() - began_s, 1),
            "knobs": dict(tuning.plan.knobs),
            "won": dict(race.changed),
            "reason": tuning.reason,
            "noise": tuning.race.noise,
            "tried": [
                [t.group, t.name, t.place, t.ratio, t.low, t.high, t.rounds, t.reason] for t in tuning.race.tried
            ],
        }


def step(cell: Cell, found: dict[str, Any], save: Callable[[], None], until_s: float) -> None:
    """What a cell lacks, as far as the time goes."""
    if not sweep(cell, found, save, until_s):
        return
    if "tuner" not in found and time.monotonic() + TUNER_S < until_s + 60:
        found["tuner"] = run_tuner(cell)
        save()
    if "tuner" in found and "final" not in found and time.monotonic() < until_s:
        grid = cell.grid()
        best = sorted(range(len(grid)), key=lambda index: -(figure_of(found["visits"], index) or 0.0))[:FINALISTS]
        arms: dict[str, Knobs] = {f"grid-{place + 1}": {**cell.base, **grid[i]} for place, i in enumerate(best)}
        settings: dict[str, Knobs] = {f"grid-{place + 1}": dict(grid[index]) for place, index in enumerate(best)}
        if tuned_arm(found["tuner"], settings) == "tuned":
            arms["tuned"] = found["tuner"]["knobs"]
        arms["default"] = cell.default
        found["final"] = {"settings": settings, "scores": cell.compare(arms, seed=99)}
        save()


def show(document: dict[str, Any]) -> None:
    """A table in Markdown of the cells that are complete."""
    regrets = []
    print("| model | profile | regret | against the default | choice |\n|---|---|---|---|---|")
    for name, found in document["cells"].items():
        if "final" not in found:
            continue
        scores = found["final"]["scores"]
        tuned = scores[tuned_arm(found["tuner"], found["final"]["settings"])]
        regret = ratio_of(tuned, best_of([scores[arm] for arm in found["final"]["settings"]]))
        gain = ratio_of(scores["default"], tuned)
        regrets.append(regret.estimate - 1)
        won = {knob: value for knob, value in found["tuner"]["won"].items() if value is not None}
        words = ", ".join(f"`{knob}={Path(str(value)).name}`" for knob, value in won.items())
        lost = f"{regret.estimate - 1:+.1%} ({regret.low - 1:+.1%} to {regret.high - 1:+.1%})"
        held = f"{gain.estimate:.2f} ({gain.low:.2f}-{gain.high:.2f})"
        print(f"| {name.replace('/', ' | ')} | {lost} | {held} | {words or 'the plan'} |")
    if regrets:
        print(f"\nmedian regret {median(regrets):+.1%}, worst {max(regrets):+.1%}, of {len(regrets)}")


def tuned_arm(tuner: dict[str, Any], settings: dict[str, Knobs]) -> str:
    """The arm with the tuner's choice: one of the grid where it is that setting, as two servers of one differ too."""
    chosen, changed = tuner["knobs"], set(tuner["won"])
    same = (
        name
        for name, overlay in settings.items()
        if changed <= set(overlay) and all(chosen.get(knob) == value for knob, value in overlay.items())
    )
    return next(same, "tuned")


def best_of(arms: list[list[float | None]]) -> list[float | None]:
    """In each round the figure of the arm that is best by the other rounds, so that luck does not choose."""

    def elsewhere(arm: list[float | None], number: int) -> float:
        return median([value or 0.0 for place, value in enumerate(arm) if place != number])

    return [max(arms, key=lambda arm: elsewhere(arm, number))[number] for number in range(len(arms[0]))]


def ratio_of(baseline: list[float | None], other: list[float | None]) -> Any:
    pairs = [([a], b) for a, b in zip(baseline, other, strict=True) if a and b]
    return ratio_of_rounds(pairs, higher_is_better=True)


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("file", type=Path)
    words.add_argument("--models", type=Path)
    words.add_argument("--minutes", type=float, default=1e6)
    words.add_argument("--only")
    words.add_argument("--show", action="store_true")
    asked = words.parse_args()
    document = json.loads(asked.file.read_text(encoding="utf-8")) if asked.file.exists() else {"cells": {}}
    if asked.show:
        show(document)
        return

    def save() -> None:
        asked.file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")

    facts = probe_machine(sample_s=0)
    document["machine"] = {
        "cpu": facts.cpu.model_dump() if facts.cpu else None,
        "memory_bytes": facts.memory.total_bytes if facts.memory else None,
        "tuner_budget_s": TUNER_S,
    }
    until_s = time.monotonic() + 60 * asked.minutes
    for model, profile in product(MODELS, PROFILES):
        name = f"{model}/{profile}"
        if asked.only not in (None, name) or time.monotonic() >= until_s:
            continue
        step(Cell(asked.models, model, profile), document["cells"].setdefault(name, {}), save, until_s)
    show(document)


if __name__ == "__main__":
    main()
