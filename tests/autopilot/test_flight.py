"""Whole flights on the embedded engine with a small made model: plan, trial, apply, use, undo."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.crash import Snapshot, differing, snapshot
from tests.program import document, run_cli
from velollm.autopilot import Order, Outcome, flights, fly, serve, undo
from velollm.backends.base import Completion
from velollm.backends.embedded import EmbeddedBackend
from velollm.backends.llamahttp import LlamaHttp
from velollm.bench.samples import METRICS
from velollm.config import Paths, user_paths
from velollm.estimate.kept import find_kept
from velollm.facts import Facts
from velollm.models.synthetic import TINY
from velollm.probe.machine import probe_machine

pytestmark = pytest.mark.flight
FULL_ROUNDS = 5
TINY_BYTES = 2_000_000
OTHERS_ENGINE_FILE = b"# mine\nmodels:\n  /elsewhere/other.gguf: {slots: 3}\n"
OTHERS_ENVIRONMENT = b"# mine too\r\nexport HTTP_PROXY='http://proxy.example'\r\nLAST=1"


class Passenger:
    """A cockpit that keeps what it was told."""

    def __init__(self) -> None:
        self.shares: list[float] = []
        self.texts: list[str] = []
        self.notes: list[str] = []

    def __call__(self, done: float, text: str, left_s: float | None = None, /) -> None:
        self.shares.append(done)
        self.texts.append(text)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def ask(self, question: str) -> bool:
        raise AssertionError(f"nobody is there to answer {question!r}")


@pytest.fixture
def paths() -> Paths:
    """A home with settings in it that are not ours."""
    found = user_paths()
    found.config.mkdir(parents=True)
    found.engine_settings.write_bytes(OTHERS_ENGINE_FILE)
    found.engine_settings.chmod(0o640)
    found.engine_env.write_bytes(OTHERS_ENVIRONMENT)
    return found


def one_core() -> Facts:
    """This machine as if it had one core: however busy it is, the engine's default then makes no threads wait."""
    facts = probe_machine(sample_s=0)
    assert facts.cpu is not None
    counts = ("physical_cores", "logical_cores", "online_cores", "usable_cores", "usable_physical_cores")
    cpu = facts.cpu.model_copy(update=dict.fromkeys(counts, 1) | {"performance_cores": None, "efficiency_cores": None})
    return facts.model_copy(update={"cpu": cpu})


def order(model: Path, paths: Paths, **changes: Any) -> Order:
    pins = {"context_tokens": 2048, "threads": 1}
    return Order(str(model), "embedded", pins=pins, paths=paths, probe=one_core, **{"budget_s": 20.0, **changes})


def whole(path: Path) -> Snapshot:
    return snapshot(path) if path.exists() else {}


def check_runs(runs: Sequence[Mapping[str, Any]], arms: list[str], notes: list[str], *, quick: bool = False) -> None:
    """What must hold for the raw samples of every comparison, however the machine feels today."""
    rounds = {run["round"] for run in runs}
    assert rounds == set(range(len(rounds)))
    cut = any("stopped after" in note for note in notes)
    assert len(rounds) >= (1 if quick or cut else FULL_ROUNDS)
    assert Counter((run["arm"], run["round"]) for run in runs) == {(a, n): 1 for a in arms for n in rounds}
    for run in runs:
        assert run["error"] is None
        assert 0 < run["ttft_s"] < run["answer_s"] or run["answer_tokens"] == 1
        assert run["prefill_tokens_per_s"] > 0
        assert run["decode_tokens_per_s"] > 0
        assert run["finish"] in ("length", "time")
        # The engine counts what it computed: all of the prompt but for the token that begins every text.
        assert run["prompt_tokens"] >= 16
        assert run["cached_prompt_tokens"] <= 2
        assert run["peak_memory_bytes"] > TINY_BYTES


def check_ratios(ratio: Mapping[str, Any]) -> None:
    assert set(METRICS) <= set(ratio)
    for found in ratio.values():
        if found["low"] is not None:
            assert 0 < found["low"] <= found["estimate"] <= found["high"]
        noise = found["floor"] or 1
        assert noise >= 1
        verdicts = {
            "faster": found["low"] is not None and found["low"] > noise,
            "slower": found["high"] is not None and found["high"] < 1 / noise,
        }
        assert found["verdict"] == next((name for name, holds in verdicts.items() if holds), "no difference")


def test_the_embedded_engine_is_here() -> None:
    """A flight cannot be tested without it, so this fails where the engine or its libgomp.so.1 is missing."""
    assert EmbeddedBackend().missing() is None


def test_a_whole_flight_there_and_back(tiny: Path, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    real = LlamaHttp.complete

    def complete(self: LlamaHttp, prompt: str, **settings: Any) -> Completion:
        asked.append(prompt)
        return real(self, prompt, **settings)

    monkeypatch.setattr(LlamaHttp, "complete", complete)
    before = whole(paths.config)
    cockpit = Passenger()
    confirmed: list[Outcome] = []

    def confirm(found: Outcome) -> bool:
        confirmed.append(found)
        return True

    outcome = fly(order(tiny, paths), cockpit, confirm)

    assert outcome.applied, outcome.applied_reason
    assert [found.trial for found in confirmed] == [outcome.trial]
    assert cockpit.shares == sorted(cockpit.shares)
    assert cockpit.texts[-1] == "done"
    # What the engine really allocated is kept: later estimates of this model are corrected by it.
    model = outcome.course.facts.model
    assert model is not None
    kept = find_kept(paths.data, model, tiny)
    assert kept is not None
    assert kept.source == "log"
    assert kept.factors.get("weights", 1.0) == pytest.approx(1.0, abs=0.01)
    trial = outcome.trial
    assert trial is not None
    assert trial.arms == ("default", "tuned")
    runs = [vars(run) for run in trial.runs]
    assert trial.notes[0].startswith("the model is a made one")
    check_runs(runs, list(trial.arms), list(trial.notes))
    check_ratios({name: vars(ratio) for name, ratio in trial.ratios.items()})
    # Every long prompt went to each arm once: none was ever seen before by the server that got it.
    assert {count for prompt, count in Counter(asked).items() if len(prompt) > 100} == {2}

    changed = {(change.target, change.key): change.after for change in outcome.plan.changes}
    assert changed == {("engine", "context_tokens"): "2048"}
    assert outcome.plan.knobs["context_tokens"] == 2048
    settings = yaml.safe_load(paths.engine_settings.read_bytes())
    assert settings["models"][str(tiny)] == {"context_tokens": 2048}
    assert settings["models"]["/elsewhere/other.gguf"] == {"slots": 3}
    assert differing(before, whole(paths.config)) == ["engine.yaml"]

    check_use(tiny, paths)
    check_flown_again(tiny, paths)

    assert outcome.flight is not None
    assert [flight.id for flight in flights(paths)] == [outcome.flight]
    undone = undo(None, paths)
    assert undone.restored == (str(paths.engine_settings),)
    assert undone.conflicts == ()
    assert whole(paths.config) == before
    assert paths.engine_settings.read_bytes() == OTHERS_ENGINE_FILE
    assert paths.engine_env.read_bytes() == OTHERS_ENVIRONMENT
    assert undo(None, paths).flight is None


def check_use(tiny: Path, paths: Paths) -> None:
    """The engine that runs for good takes the settings that the flight left, and answers with them."""
    with serve(Order(str(tiny), "embedded", paths=paths, probe=one_core), Passenger(), port=0) as service:
        assert service.knobs["context_tokens"] == 2048
        assert isinstance(service.server, LlamaHttp)
        running = service.server.props()["default_generation_settings"]
        assert isinstance(running, dict)
        assert running["n_ctx"] == 2048
        answer = service.server.complete("Once upon a time", max_tokens=8, seed=1, deadline_s=30)
        assert (answer.finish, answer.events[-1][1]) == ("length", 8)
    log = paths.data / "engine.log"
    first = log.read_bytes()
    with serve(Order(str(tiny), "embedded", paths=paths, probe=one_core), Passenger(), port=0):
        assert log.with_name("engine.log.1").read_bytes() == first


def check_flown_again(tiny: Path, paths: Paths) -> None:
    """What is set already is the plan, so there is nothing to try."""
    again = fly(order(tiny, paths), Passenger(), lambda _: False)
    assert (again.trial, again.applied, again.advised) == (None, False, False)
    assert again.applied_reason == "what is set now already is the plan"


def test_no_means_no(tiny: Path, paths: Paths) -> None:
    before = whole(paths.config)
    outcome = fly(order(tiny, paths, quick=True), Passenger(), lambda _: False)
    assert outcome.trial is not None
    assert (outcome.applied, outcome.advised, outcome.flight) == (False, True, None)
    assert "nobody said yes" in outcome.applied_reason
    assert whole(paths.config) == before
    assert flights(paths) == []


def test_optimize_history_and_undo_as_programs(tiny: Path, own_home: Path) -> None:
    flags = ("--backend", "embedded", "--set", "context_tokens=2048", "--set", "threads=1")
    done = run_cli("optimize", tiny, *flags, "--yes", "--json", "--budget", "15s")
    assert done.returncode == 0, done.stderr
    assert "starting 'default'" in done.stderr
    assert "s left)" in done.stderr
    found = document(done)
    check_plan_fields(found, tiny)
    assert set(found["trial"]) >= {"runs", "ratio"}
    check_runs(found["trial"]["runs"], ["default", "tuned"], found["trial"]["notes"])
    check_ratios(found["trial"]["ratio"])
    assert found["applied"] is True
    assert found["applied_reason"]
    assert found["pending"] == []
    by_name = {knob["name"]: knob for knob in found["knobs"]}
    assert by_name["context_tokens"] | {"reason": ""} == {
        "name": "context_tokens", "value": 2048, "default": 4096, "reason": "", "basis": "user"
    }  # fmt: skip

    history = document(run_cli("history", "--json"))["flights"]
    assert [(flight["flight"], flight["status"]) for flight in history] == [(found["flight"], "applied")]
    undone = run_cli("undo", found["flight"], "--json")
    assert undone.returncode == 0
    assert document(undone)["restored"] == sorted({change["target"] for change in found["changes"]}, reverse=True)
    assert whole(own_home / "velollm" / "config") == {}
    again = run_cli("undo")
    assert (again.returncode, again.stdout, again.stderr) == (0, "Nothing to undo.\n", "")
    assert document(run_cli("history", "--json"))["flights"][0]["status"] == "undone"


def check_plan_fields(found: Mapping[str, Any], model: Path) -> None:
    assert found["backend"] == "embedded"
    assert found["model"] == str(model)
    assert found["facts"]["model"]["layers"] == TINY.layers
    assert found["facts"]["cpu"]["usable_cores"] >= 1
    assert {frozenset(knob) for knob in found["knobs"]} == {frozenset({"name", "value", "default", "reason", "basis"})}
    assert {knob["name"] for knob in found["knobs"]} == EmbeddedBackend.knobs
    assert all(knob["reason"] for knob in found["knobs"])
    assert {frozenset(change) for change in found["changes"]} == {
        frozenset({"target", "key", "before", "after", "reason", "basis"})
    }


def test_a_dry_run_touches_nothing(tiny: Path, own_home: Path) -> None:
    before = whole(own_home)
    flags = ("--backend", "embedded", "--set", "context_tokens=2048", "--dry-run")
    done = run_cli("optimize", tiny, *flags, "--json")
    assert done.returncode == 3
    found = document(done)
    check_plan_fields(found, tiny)
    assert "trial" not in found
    assert "context_tokens" in {change["key"] for change in found["changes"]}
    text = run_cli("optimize", tiny, *flags)
    assert text.returncode == 3
    assert "\n+ context_tokens=2048\n" in text.stdout
    assert "you asked for it with --set" in " ".join(text.stdout.split())
    without_model = run_cli("optimize", "--backend", "embedded", "--dry-run")
    assert without_model.returncode in (0, 3)
    assert whole(own_home) == before


def test_a_quick_bench(tiny: Path, own_home: Path) -> None:
    done = run_cli("bench", tiny, "--backend", "embedded", "--quick", "--json", "--set", "threads=1")
    assert done.returncode in (0, 3), done.stderr
    found = document(done)
    assert (found["model"], found["backend"]) == (str(tiny), "embedded")
    check_runs(found["runs"], ["default", "tuned"], found["notes"], quick=True)
    check_ratios(found["ratio"])
    assert {run["workload"] for run in found["runs"]} == {"chat"}
    assert found["elapsed_s"] < 30
    assert (done.returncode == 3) == (found["ratio"]["decode"]["verdict"] == "slower")
    assert not (own_home / "velollm" / "config").exists()
