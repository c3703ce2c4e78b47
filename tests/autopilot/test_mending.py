"""What `velollm doctor --fix` writes, and that it can be taken back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from tests.fake_ollama import MODEL, FakeOllama, StoredModel
from velollm.autopilot import choose_mendable, find_flight, flights, mend, undo, unmendable
from velollm.backends.ollama import OllamaBackend
from velollm.config import Paths, user_paths
from velollm.doctor.base import EnvironmentMend, Evidence, Finding, Mend, ParameterMend, RestartMend
from velollm.errors import VeloError
from velollm.facts import Facts, ServerFacts
from velollm.targets.envfile import parse_env

NAME = f"{MODEL}:latest"


class Quiet:
    """A cockpit that says yes."""

    def __call__(self, done: float, text: str, left_s: float | None = None, /) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def ask(self, question: str) -> bool:
        return True


QUIET = Quiet()


class Run:
    """A `velollm run` that was started with ``environ``; ``failing`` are the restarts that fail, by number."""

    def __init__(self) -> None:
        self.there = True
        self.environ: dict[str, str] | None = {}
        self.restarts: list[dict[str, str]] = []
        self.failing: set[int] = set()
        self.paths = user_paths()

    def restart(self) -> None:
        self.restarts.append(parse_env(self.paths.ollama_env.read_text()) if self.paths.ollama_env.exists() else {})
        if len(self.restarts) in self.failing:
            raise VeloError("the server ended at once (exit status 1)", "look at the output of `velollm run`")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    found = Run()
    monkeypatch.setattr("velollm.targets.activation.find_runner", lambda *_: found if found.there else None)
    for room in ("velollm.targets.activation", "velollm.autopilot.landing"):
        monkeypatch.setattr(f"{room}.reach_runner", lambda _: found)
    monkeypatch.setattr("velollm.targets.run_environment.read_runner_environ", lambda _: found.environ)
    return found


@pytest.fixture
def backend(fake: FakeOllama) -> Iterator[OllamaBackend]:
    found = OllamaBackend(fake.url)
    yield found
    found.api.close()


@pytest.fixture
def paths(run: Run) -> Paths:
    run.paths.config.mkdir(parents=True)
    return run.paths


def finding(wanted: Mend | None, title: str = "something") -> Finding:
    return Finding("a-check", "warning", title, (Evidence("here", "so"),), "mend it", "it matters", wanted)


def server(**values: object) -> Facts:
    known = {"engine": "ollama", "reachable": True, "managed": "velollm run", **values}
    return Facts(server=ServerFacts.model_validate(known))


@pytest.mark.parametrize(
    ("facts", "wanted", "may"),
    [
        (server(), EnvironmentMend({"A": "1"}), True),
        (server(), RestartMend(), True),
        (server(managed="by hand"), EnvironmentMend({"A": "1"}), False),
        (server(managed="by hand"), RestartMend(), False),
        (server(managed="by hand"), ParameterMend(NAME, {"num_ctx": 4096}), True),
        (server(reachable=False), ParameterMend(NAME, {"num_ctx": 4096}), False),
        (server(remote=True), ParameterMend(NAME, {"num_ctx": 4096}), False),
        (server(), None, False),
        (Facts(), EnvironmentMend({"A": "1"}), False),
    ],
)
def test_what_may_be_mended_where(run: Run, facts: Facts, wanted: Mend | None, may: bool) -> None:
    run.there = facts.server is not None and facts.server.managed == "velollm run"
    assert (unmendable(facts, wanted) is None) == may
    assert bool(choose_mendable(facts, [finding(wanted)])) == may


def test_what_another_place_decides_is_not_offered() -> None:
    unit = server(managed="systemd", unit="ollama.service", configured={"/etc/default/ollama": {"A": "0"}})
    assert "/etc/default/ollama, which wins" in (unmendable(unit, EnvironmentMend({"A": "1"})) or "")


def test_a_variable_is_set_in_one_flight_and_taken_back(paths: Paths, run: Run, backend: OllamaBackend) -> None:
    paths.ollama_env.write_text("# mine\nOLLAMA_MAX_QUEUE=9\n")
    done = mend(
        server(), [finding(EnvironmentMend({"OLLAMA_KEEP_ALIVE": "30m"}), "models leave soon")], QUIET, paths, backend
    )
    assert paths.ollama_env.read_text() == "# mine\nOLLAMA_MAX_QUEUE=9\nOLLAMA_KEEP_ALIVE=30m\n"
    assert (done.places, done.restarted) == ((str(paths.ollama_env),), True)
    assert done.flight is not None
    kept = find_flight(done.flight)
    assert (kept.status, kept.meta.summary) == ("applied", "OLLAMA_KEEP_ALIVE=30m")
    assert kept.meta.details["findings"] == ["a-check: models leave soon"]
    undo(done.flight)
    assert paths.ollama_env.read_text() == "# mine\nOLLAMA_MAX_QUEUE=9\n"
    assert [set(environ) for environ in run.restarts] == [
        {"OLLAMA_MAX_QUEUE", "OLLAMA_KEEP_ALIVE"},
        {"OLLAMA_MAX_QUEUE"},
    ]


@pytest.mark.parametrize(
    ("file", "inherited", "after"),
    [
        ("BAD=1\nGOOD=2\n", {}, "GOOD=2\n"),
        ("BAD=1\nGOOD=2\n", {"BAD": "0"}, "BAD=\nGOOD=2\n"),
        ("GOOD=2\n", {"BAD": "0"}, "GOOD=2\nBAD=\n"),
        ("BAD=1\nGOOD=2\n", None, "GOOD=2\n"),
    ],
)
def test_a_variable_is_taken_away_wherever_it_comes_from(
    paths: Paths, run: Run, backend: OllamaBackend, file: str, inherited: dict[str, str] | None, after: str
) -> None:
    paths.ollama_env.write_text(file)
    run.environ = inherited
    mend(server(), [finding(EnvironmentMend({"BAD": None}))], QUIET, paths, backend)
    assert paths.ollama_env.read_text() == after
    assert len(run.restarts) == 1


def test_the_graver_finding_wins(paths: Paths, run: Run, backend: OllamaBackend) -> None:
    first = finding(EnvironmentMend({"A": "1", "B": "1"}))
    mend(server(), [first, finding(EnvironmentMend({"A": "2", "C": "2"}))], QUIET, paths, backend)
    assert parse_env(paths.ollama_env.read_text()) == {"A": "1", "B": "1", "C": "2"}
    assert len(flights()) == 1


def test_a_restart_writes_nothing(paths: Paths, run: Run, backend: OllamaBackend) -> None:
    done = mend(server(), [finding(RestartMend())], QUIET, paths, backend)
    assert (done.flight, done.places, done.restarted) == (None, (), True)
    assert len(run.restarts) == 1
    assert flights() == []


def test_a_parameter_is_changed_and_given_back(
    paths: Paths, run: Run, backend: OllamaBackend, fake: FakeOllama
) -> None:
    before = fake.digests()
    done = mend(server(), [finding(ParameterMend(NAME, {"num_ctx": 8192, "use_mmap": True}))], QUIET, paths, backend)
    found = fake.find(NAME)
    assert found == StoredModel("weights", (("num_ctx", "8192"), ("use_mmap", "true")))
    assert run.restarts == []
    assert not done.restarted
    undo(done.flight)
    assert fake.digests() == before


def test_models_in_memory_are_loaded_again(paths: Paths, run: Run, backend: OllamaBackend, fake: FakeOllama) -> None:
    fake.loaded[NAME] = datetime.now(UTC) + timedelta(seconds=900)
    mend(server(), [finding(EnvironmentMend({"A": "1"}))], QUIET, paths, backend)
    (body,) = fake.bodies("/api/generate")
    assert body["model"] == NAME
    assert 890 <= body["keep_alive"] <= 900


def test_a_model_in_memory_is_loaded_anew_with_its_mended_parameters(
    paths: Paths, run: Run, backend: OllamaBackend, fake: FakeOllama
) -> None:
    fake.store["other:latest"] = StoredModel("other weights")
    for name in (NAME, "other:latest"):
        fake.loaded[name] = datetime.now(UTC) + timedelta(seconds=900)
    mend(server(), [finding(ParameterMend(NAME, {"use_mmap": False}))], QUIET, paths, backend)
    gone, back = fake.bodies("/api/generate")
    assert (gone["model"], gone["keep_alive"]) == (NAME, 0)
    assert back["model"] == NAME
    assert 890 <= back["keep_alive"] <= 900
    order = [path for _, path, _ in fake.requests if path in ("/api/create", "/api/generate")]
    assert order == ["/api/create", "/api/generate", "/api/generate"]
    assert run.restarts == []


def test_mended_parameters_that_do_not_load_are_put_back(
    paths: Paths, run: Run, backend: OllamaBackend, fake: FakeOllama
) -> None:
    before = fake.digests()
    fake.loaded[NAME] = datetime.now(UTC) + timedelta(seconds=900)
    fake.faults += ["load fails"]
    with pytest.raises(VeloError, match=r"put back, because then .*exit status 1"):
        mend(server(), [finding(ParameterMend(NAME, {"use_mmap": False}))], QUIET, paths, backend)
    assert fake.digests() == before
    assert NAME in fake.loaded
    assert run.restarts == []
    assert [flight.status for flight in flights()] == ["undone"]


def test_a_server_that_does_not_come_up_is_put_back(paths: Paths, run: Run, backend: OllamaBackend) -> None:
    paths.ollama_env.write_text("A=1\n")
    run.failing = {1}
    with pytest.raises(VeloError, match="put back, because then the server ended at once"):
        mend(server(), [finding(EnvironmentMend({"A": "2"}))], QUIET, paths, backend)
    assert paths.ollama_env.read_text() == "A=1\n"
    assert [environ["A"] for environ in run.restarts] == ["2", "1"]
    assert [flight.status for flight in flights()] == ["undone"]


def test_a_model_that_no_longer_loads_is_a_reason_to_put_back(
    paths: Paths, run: Run, backend: OllamaBackend, fake: FakeOllama
) -> None:
    fake.loaded[NAME] = datetime.now(UTC) + timedelta(seconds=900)
    fake.faults += ["load fails"]
    with pytest.raises(VeloError, match=r"put back, because then .*exit status 1"):
        mend(server(), [finding(EnvironmentMend({"A": "2"}))], QUIET, paths, backend)
    assert not paths.ollama_env.exists()
    assert len(run.restarts) == 2
    assert len(fake.bodies("/api/generate")) == 2


def test_details_are_plain_json(paths: Paths, run: Run, backend: OllamaBackend) -> None:
    done = mend(server(), [finding(EnvironmentMend({"A": "1"}))], QUIET, paths, backend)
    assert done.flight is not None
    told = json.loads(json.dumps(dict(find_flight(done.flight).meta.details)))
    assert (told["schema"], told["kind"]) == (2, "doctor")
