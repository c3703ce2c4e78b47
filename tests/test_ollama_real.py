"""The flight through a real Ollama. Every test leaves the server's store as it was, which one fixture checks."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.real_ollama import MODEL, RealOllama, served
from velollm.apply import undo_flight
from velollm.autopilot import Course, Order, chart
from velollm.autopilot.landing import journal_of, land
from velollm.autopilot.trial import compare, make_room
from velollm.backends.base import Setting
from velollm.backends.ollama import OllamaBackend
from velollm.backends.ollama_log import parse_loads, parse_truncations
from velollm.backends.ollama_trial import private_ollama
from velollm.config import Paths
from velollm.errors import VeloError
from velollm.facts import Facts
from velollm.knobs import KnobValue
from velollm.probe.machine import probe_machine
from velollm.targets.ollama_model import parse_parameters

pytestmark = pytest.mark.ollama
COPY = f"{MODEL}-before-velollm:latest"
KILLED = str(Path(__file__).with_name("killed_flight.py"))
PINS: dict[str, KnobValue] = {"threads": 1, "context_tokens": 1024, "batch": 256, "ubatch": 256, "slots": 2}


class Quiet:
    """A cockpit that says yes to nothing."""

    def __call__(self, done: float, text: str, left_s: float | None = None, /) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def ask(self, question: str) -> bool:
        return False


server = pytest.fixture(scope="module")(served)


@pytest.fixture(scope="session")
def facts() -> Facts:
    return probe_machine()


@pytest.fixture(autouse=True)
def as_before(server: RealOllama) -> Iterator[None]:
    """Whatever a test does, it ends with the store as it was: every file, every directory, every digest."""
    tree, digests = server.tree(), server.digests()
    yield
    assert server.tree() == tree
    assert server.digests() == digests


@pytest.fixture
def backend(server: RealOllama, monkeypatch: pytest.MonkeyPatch) -> Iterator[OllamaBackend]:
    monkeypatch.setenv("OLLAMA_HOST", server.url)
    backend = OllamaBackend()
    monkeypatch.setattr("velollm.backends.ollama.backend", backend)
    yield backend
    backend.api.close()


@pytest.fixture(autouse=True)
def own_temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Homes of private servers go here, and away again."""
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    yield
    assert list(place.iterdir()) == []


def order_of(tmp_path: Path, facts: Facts, **changes: Any) -> Order:
    root = tmp_path / "velollm"
    paths = Paths(root / "config", root / "data", root / "cache")
    return Order(
        **{"model": MODEL, "backend": "ollama", "pins": PINS, "paths": paths, "probe": lambda: facts, **changes}
    )


@pytest.fixture
def course(backend: OllamaBackend, tmp_path: Path, facts: Facts) -> Course:
    return chart(order_of(tmp_path, facts), Quiet())


def below(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def ended(pids: list[int], timeout_s: float = 20) -> bool:
    """Did all of them end? A process that nobody has reaped yet has ended."""
    for pid in pids:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        found, _, _ = select.select([handle], [], [], timeout_s)
        os.close(handle)
        if not found:
            return False
    return True


def test_what_is_learned_of_the_server(backend: OllamaBackend, server: RealOllama) -> None:
    assert backend.missing() is None
    assert backend.process is not None
    assert backend.process.pid == server.pid
    assert backend.process.environ is not None
    assert backend.process.environ["OLLAMA_MODELS"] == str(server.models)
    model = backend.find_model(MODEL)
    assert model.path is not None
    assert model.path.read_bytes()[:4] == b"GGUF"
    assert backend.models_dir(model) == server.models
    assert backend.untriable(model) is None
    with pytest.raises(VeloError, match="no model 'absent'"):
        backend.find_model("absent")


@pytest.mark.parametrize(
    ("changes", "runs"),
    [
        ({}, {"threads": 2, "slots": 1, "context_tokens": 2048, "batch": 512, "ubatch": 512}),
        ({"threads": 1}, {"threads": 1}),
        ({"context_tokens": 1024}, {"context_tokens": 1024}),
        ({"context_tokens": 256}, {"context_tokens": 256, "batch": 256}),
        ({"slots": 2}, {"slots": 2, "context_tokens": 2048, "batch": 512}),
        ({"batch": 256, "ubatch": 256}, {"batch": 256, "ubatch": 256}),
        ({"batch": 1024, "ubatch": 128}, {"batch": 1024, "ubatch": 128}),
        ({"kv_type_k": "q8_0", "kv_type_v": "q8_0"}, {"kv_type_k": "q8_0", "kv_type_v": "q8_0"}),
        ({"kv_type_k": "q8_0"}, {"kv_type_k": "q8_0", "kv_type_v": "f16"}),
        ({"flash_attention": "on"}, {"flash_attention": "enabled"}),
        ({"flash_attention": "off"}, {"flash_attention": "disabled"}),
        ({"speculation": "ngram-mod"}, {}),
        ({"kv_unified": "on", "slots": 2}, {"kv_unified": "on", "slots": 2}),
        ({"kv_offload": "off", "cpu_moe_layers": 1, "gpu_layers": 0}, {"kv_unified": "off"}),
        ({"cpu_ffn_layers": 1}, {}),
        ({"load_mode": "mmap", "keep_alive_s": -1, "max_loaded_models": 1}, {}),
    ],
)
def test_each_knob_reaches_the_engine(
    course: Course, facts: Facts, tmp_path: Path, changes: dict[str, KnobValue], runs: dict[str, KnobValue]
) -> None:
    if facts.cpu is None or facts.cpu.physical_cores != 2:
        runs = {name: value for name, value in runs.items() if name != "threads" or "threads" in changes}
    log = tmp_path / "log"
    knobs = {**course.plan.defaults, **changes}
    with course.backend.trial(course.model, knobs, course.facts, log=log) as trial:
        answer = trial.complete("import os\n", max_tokens=8, seed=1, deadline_s=30)
        tokens = trial.count_tokens("import os")
        pids = trial.pids()
    assert (answer.finish, answer.error) == ("length", None)
    assert tokens == 2
    assert len(pids) == 1
    assert ended(list(pids))
    (load,) = parse_loads(log.read_text(errors="replace"))
    assert runs.items() <= load.values.items()
    assert load.speculation == ((changes["speculation"],) if "speculation" in changes else ())
    assert load.flag("--load-mode") == (None if changes.get("load_mode") == "mmap" else "none")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"LLAMA_ARG_THREADS": "many"}, 'error while handling environment variable "LLAMA_ARG_THREADS": stoi'),
        ({"LLAMA_ARG_DRAFT_MAX": "8"}, "the argument has been removed"),
        ({"OLLAMA_KV_CACHE_TYPE": "q9"}, "Unsupported cache type: q9"),
        (
            {"OLLAMA_KV_CACHE_TYPE": "q8_0", "OLLAMA_FLASH_ATTENTION": "0"},
            "quantized V cache requires flash_attn to be enabled",
        ),
        ({"LLAMA_ARG_SPEC_TYPE": "draft-mtp"}, "context type MTP requested but model doesn't contain MTP layers"),
    ],
)
def test_a_bad_setting_is_told_in_the_engines_words(
    backend: OllamaBackend, server: RealOllama, tmp_path: Path, settings: dict[str, str], reason: str
) -> None:
    given = [Setting("environment", key, value, "threads") for key, value in settings.items()]
    assert backend.binary is not None
    trial = private_ollama(backend.binary, MODEL, server.models, {}, given, log=tmp_path / "log")
    with pytest.raises(VeloError) as caught, trial:
        raise AssertionError("it must not start")
    assert caught.value.message.startswith(f"Ollama could not load {MODEL}: ")
    assert reason in caught.value.message


def test_a_priority_reaches_the_engine_or_the_system_says_why_not(
    backend: OllamaBackend, server: RealOllama, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    assert backend.binary is not None
    settings = [Setting("config", "prio", "2", "priority")]
    trial = private_ollama(backend.binary, MODEL, server.models, {"priority": "high"}, settings, log=log)
    try:
        with trial as running:
            assert running.complete("import os\n", max_tokens=4, seed=1, deadline_s=30).error is None
            policies = {os.sched_getscheduler(pid) for pid in running.pids()} | {
                os.sched_getscheduler(int(task.name))
                for pid in running.pids()
                for task in Path(f"/proc/{pid}/task").iterdir()
            }
            assert os.SCHED_FIFO in policies or any(os.getpriority(os.PRIO_PROCESS, p) < 0 for p in running.pids())
    except VeloError as error:
        assert "failed to set" in error.message
    assert "using config file: " in log.read_text(errors="replace")


def test_an_environment_that_breaks_another_model_is_noticed(course: Course, tmp_path: Path) -> None:
    backend = course.backend
    assert isinstance(backend, OllamaBackend)
    backend.api.post("/api/copy", {"source": MODEL, "destination": "other"})
    try:
        bad = [Setting("environment", "LLAMA_ARG_SPEC_TYPE", "draft-mtp", "speculation")]
        failed = backend.failing_models(course.model, bad, tmp_path / "log")
        fine = backend.failing_models(course.model, [], tmp_path / "log")
        # A model that does not load anyhow is not the environment's fault.
        backend.api.post("/api/create", {"model": "broken", "from": MODEL, "parameters": {"num_ctx": "many"}})
        blameless = backend.failing_models(backend.find_model("other"), [], tmp_path / "log")
    finally:
        for name in ("other", "broken"):
            with contextlib.suppress(VeloError):
                backend.api.delete("/api/delete", {"model": name})
    assert failed is not None
    assert failed.startswith("other:latest (")
    assert "MTP" in failed
    assert fine is None
    assert blameless is None


def test_a_prompt_above_the_context_leaves_a_line_in_the_log(course: Course, tmp_path: Path) -> None:
    backend, log = course.backend, tmp_path / "log"
    assert isinstance(backend, OllamaBackend)
    knobs = {**course.plan.defaults, "context_tokens": 256}
    with backend.trial(course.model, knobs, course.facts, log=log) as trial:
        answer = trial.complete("import os\n" * 400, max_tokens=4, seed=1, deadline_s=30)
    ((limit, prompt, kept),) = parse_truncations(log.read_text(errors="replace"))
    assert prompt == 1200
    assert kept == limit < 256
    assert answer.fresh_prompt_tokens == kept


def test_a_trial_is_gone_afterwards_even_when_it_breaks(course: Course, server: RealOllama, tmp_path: Path) -> None:
    trial = course.backend.trial(course.model, course.plan.defaults, course.facts, log=tmp_path / "log")
    with pytest.raises(ZeroDivisionError), trial:
        mine = [process.pid for process in below(os.getpid()) if process.pid != server.pid]
        assert len(mine) >= 3
        raise ZeroDivisionError
    assert ended(mine)


def test_the_arms_are_measured(course: Course) -> None:
    result = compare(course, course.plan, Quiet(), 8.0)
    assert set(result.arms) == {"default", "tuned"}
    assert {run.arm for run in result.runs} == {"default", "tuned"}


class Willing(Quiet):
    """A cockpit that says yes to everything."""

    def ask(self, question: str) -> bool:
        return True


@pytest.fixture
def crowded(course: Course) -> Iterator[Course]:
    """The user's server holds the model for 90 s, in what looks like most of a small machine's memory."""
    backend = course.backend
    assert isinstance(backend, OllamaBackend)
    backend.api.load(MODEL, {}, keep_alive=90)
    (held,) = backend.holding()
    assert course.facts.memory is not None
    memory = course.facts.memory.model_copy(update={"total_bytes": held.size_bytes + 1})
    yield replace(course, facts=course.facts.model_copy(update={"memory": memory}))
    backend.api.unload(MODEL)


def test_a_model_in_the_way_is_unloaded_and_loaded_again_with_the_time_it_had_left(crowded: Course) -> None:
    backend = crowded.backend
    assert isinstance(backend, OllamaBackend)
    with pytest.raises(ZeroDivisionError), make_room(crowded, Willing()):
        assert backend.holding() == []
        raise ZeroDivisionError
    (again,) = backend.holding()
    assert again.name == f"{MODEL}:latest"
    assert 30 < again.keep_alive_left_s() <= 90


def test_without_a_yes_nothing_is_unloaded(crowded: Course) -> None:
    backend = crowded.backend
    assert isinstance(backend, OllamaBackend)
    with pytest.raises(VeloError, match="holds tiny-python:latest in memory") as caught, make_room(crowded, Quiet()):
        raise AssertionError("there is no room")
    assert "--yes" in caught.value.hint
    assert [model.name for model in backend.holding()] == [f"{MODEL}:latest"]


def test_apply_and_undo_are_byte_for_byte(course: Course, server: RealOllama) -> None:
    before_tree, before = server.tree(), server.digests()
    env_file = course.order.paths.ollama_env
    assert isinstance(course.backend, OllamaBackend)
    assert land(course, course.plan, "a test") is not None
    try:
        between, between_tree = server.digests(), server.tree()
        shown = parse_parameters(str(course.backend.api.show(MODEL)["parameters"]))
        variables = env_file.read_text()
    finally:
        result = undo_flight(journal_of(course.order.paths))
    assert between[COPY] == before[f"{MODEL}:latest"]
    assert between[f"{MODEL}:latest"] != before[f"{MODEL}:latest"]
    assert between_tree != before_tree
    assert "OLLAMA_NUM_PARALLEL=2" in variables
    assert shown == [["num_batch", "256"], ["num_ctx", "1024"], ["num_thread", "1"], ["stop", '"<|end|>"']]
    assert result.conflicts == ()
    assert server.digests() == before
    assert server.tree() == before_tree
    assert not env_file.exists()


def test_a_changed_model_still_answers_and_is_loaded_as_told(course: Course, server: RealOllama) -> None:
    backend = course.backend
    assert isinstance(backend, OllamaBackend)
    assert land(course, course.plan, "a test") is not None
    try:
        with backend.user_server(MODEL) as own:
            answer = own.complete("import os\n", max_tokens=8, seed=1, deadline_s=30)
            assert own.count_tokens("import os") == 2
            assert own.pids()
        assert answer.finish == "length"
        assert [model.context_tokens for model in backend.holding()] == [1024]
    finally:
        backend.api.unload(MODEL)
        undo_flight(journal_of(course.order.paths))


@pytest.mark.parametrize(
    ("action", "number", "when"),
    [
        *(("apply", number, when) for number in (1, 2) for when in ("before", "after")),
        *(("undo", number, "after") for number in (1, 2, 3, 4, 5)),
    ],
)
def test_a_flight_that_is_killed_is_undone_by_the_next_process(
    server: RealOllama, tmp_path: Path, action: str, number: int, when: str
) -> None:
    before_tree, before = server.tree(), server.digests()
    environ = server.environ(tmp_path)
    flown = subprocess.run(
        [sys.executable, KILLED, action, str(number), when], env=environ, capture_output=True, timeout=60
    )
    assert flown.returncode == -signal.SIGKILL, flown.stderr.decode()
    undone = subprocess.run(
        [sys.executable, "-m", "velollm", "undo", "--json"], env=environ, capture_output=True, timeout=60
    )
    assert undone.returncode == 0, undone.stderr.decode()
    assert server.digests() == before
    assert server.tree() == before_tree
    assert not (tmp_path / "velollm" / "config" / "ollama.env").exists()


def velollm(*argv: str) -> list[str]:
    return [sys.executable, "-m", "velollm", *argv]


def test_optimize_and_undo_by_the_command_line(server: RealOllama, tmp_path: Path) -> None:
    before_tree, before = server.tree(), server.digests()
    environ = server.environ(tmp_path)
    flown = subprocess.run(
        velollm("optimize", MODEL, "--backend=ollama", "--yes", "--json", "--budget=40s", "--set=context_tokens=1024"),
        env=environ,
        capture_output=True,
        timeout=180,
    )
    assert flown.returncode == 0, flown.stderr.decode()
    told = json.loads(flown.stdout)
    assert told["backend"] == "ollama"
    assert told["model"] == MODEL
    assert told["applied"] is True, told["applied_reason"]
    assert told["flight"]
    assert set(told["trial"]["arms"]) == {"default", "tuned"}
    assert {"ratio", "summary", "runs"} <= told["trial"].keys()
    assert {(change["key"], change["after"]) for change in told["changes"]} >= {("num_ctx", "1024")}
    assert server.digests()[COPY] == before[f"{MODEL}:latest"]
    assert server.digests()[f"{MODEL}:latest"] != before[f"{MODEL}:latest"]
    assert serving(tmp_path) == []
    assert not list(tmp_path.glob("velollm-*"))
    undone = subprocess.run(velollm("undo", "--json"), env=environ, capture_output=True, timeout=60)
    assert undone.returncode == 0, undone.stderr.decode()
    assert json.loads(undone.stdout)["flight"] == told["flight"]
    assert server.digests() == before
    assert server.tree() == before_tree


def serving(place: Path) -> list[int]:
    """Processes whose home lies under a directory: private servers of a command that was started with it."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("HOME", "").startswith(f"{place}/"):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def engines(pid: int) -> list[psutil.Process]:
    found = below(pid)
    try:
        return found if any(process.name().startswith("llama-server") for process in found) else []
    except psutil.NoSuchProcess:
        return []


def test_a_killed_command_leaves_no_server(server: RealOllama, tmp_path: Path) -> None:
    command = velollm("bench", MODEL, "--backend", "ollama", "--budget", "60s")
    with subprocess.Popen(
        command, env=server.environ(tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        until = time.monotonic() + 60
        clock = threading.Event()
        while not (mine := engines(process.pid)):
            assert process.poll() is None
            assert time.monotonic() < until
            clock.wait(0.05)
        assert {"ollama", "llama-server"} <= {found.name() for found in mine}
        process.kill()
    assert ended([found.pid for found in mine])
    assert serving(tmp_path) == []
