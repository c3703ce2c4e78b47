from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import tests.fake_winreg
from tests.fake_ollama import FakeOllama, StoredModel
from tests.targets.outside import Programs, ground, system
from velollm.apply import Write, apply_writes, undo_flight
from velollm.backends.ollama import OllamaBackend
from velollm.backends.ollama_find import ServerProcess
from velollm.errors import VeloError
from velollm.facts import ServerFacts
from velollm.journal import FlightMeta, Journal
from velollm.knobs import KnobValue
from velollm.targets.ollama_places import OllamaPlaces, tuning_of

MODEL = "tiny-python"
DEFAULTS: dict[str, KnobValue] = {"threads": 2, "context_tokens": 4096, "slots": 1, "batch": 512, "ubatch": 512}
CHANGES = [("model", "num_thread", "1"), ("environment", "OLLAMA_NUM_PARALLEL", "2")]
META = FlightMeta("0.1.0", "ollama", MODEL, "")


_made: list[OllamaBackend] = []


class Ollama(OllamaBackend):
    """The backend with a server process whose environment a test gives; None may not be read."""

    def __init__(self, environ: dict[str, str] | None = None) -> None:
        super().__init__()
        _made.append(self)
        self.__dict__["process"] = ServerProcess(1, None, None, ("ollama", "serve"), environ)


@pytest.fixture(autouse=True)
def host(fake: FakeOllama, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("OLLAMA_HOST", fake.url)
    yield
    while _made:
        _made.pop().api.close()


def places(tmp_path: Path, environ: dict[str, str] | None = None, *, beside: bool = False) -> OllamaPlaces:
    return OllamaPlaces(Ollama(environ or {}), MODEL, tmp_path / "ollama.env", beside=beside)


def apply(found: OllamaPlaces, changes: Sequence[tuple[str, str, str | None]], journal: Journal) -> None:
    apply_writes([Write(target, after, before) for target, before, after in found.writes(changes)], journal, META)


def test_nothing_is_set(tmp_path: Path) -> None:
    found = places(tmp_path, {"HOME": "/root", "OLLAMA_HOST": "127.0.0.1:1", "OLLAMA_MODELS": "/m"})
    assert found.read_settings() == {}
    assert found.own_knobs() == {}
    assert found.knobs_of({}, DEFAULTS) is None


def test_what_is_set_in_each_place(tmp_path: Path, fake: FakeOllama) -> None:
    parameters = (("num_ctx", "1024"), ("stop", '"x"'), ("temperature", "0.2"), ("use_mmap", "true"))
    fake.store[f"{MODEL}:latest"] = StoredModel("weights", parameters)
    (tmp_path / "ollama.env").write_text("OLLAMA_NUM_PARALLEL=4\nLLAMA_ARG_SPEC_TYPE=ngram-mod\n")
    found = places(tmp_path, {"OLLAMA_NUM_PARALLEL": "2", "OLLAMA_KEEP_ALIVE": "1h", "HOME": "/root"})
    settings = found.read_settings()
    assert settings == {
        ("environment", "OLLAMA_NUM_PARALLEL"): "4",
        ("environment", "OLLAMA_KEEP_ALIVE"): "1h",
        ("environment", "LLAMA_ARG_SPEC_TYPE"): "ngram-mod",
        ("model", "num_ctx"): "1024",
        ("model", "use_mmap"): "true",
    }
    assert found.knobs_of(settings, DEFAULTS) == {**DEFAULTS, "slots": 4, "context_tokens": 1024}


def test_only_the_users_own_settings_count_as_own(tmp_path: Path, fake: FakeOllama) -> None:
    fake.store[f"{MODEL}:latest"] = StoredModel("weights", (("num_ctx", "1024"),))
    (tmp_path / "ollama.env").write_text("OLLAMA_NUM_PARALLEL=4\n")
    found = places(tmp_path, {"OLLAMA_NUM_PARALLEL": "4", "OLLAMA_KEEP_ALIVE": "1h"})
    assert found.own_knobs() == {"keep_alive_s": 3600, "context_tokens": 1024}


def test_what_a_flight_set_is_not_the_users_own(tmp_path: Path) -> None:
    found = places(tmp_path)
    apply(found, CHANGES, Journal(tmp_path / "journal"))
    assert found.read_settings() == {
        ("environment", "OLLAMA_NUM_PARALLEL"): "2",
        ("model", "num_thread"): "1",
    }
    assert places(tmp_path, {"OLLAMA_NUM_PARALLEL": "2"}).own_knobs() == {}


SHELL = {"OLLAMA_NUM_PARALLEL": "8"}
IN_BOX = '[{"Name": "/ollama", "Config": {"Image": "o", "Env": ["OLLAMA_NUM_PARALLEL=8"], "Labels": {%s}}}]'
IN_PROJECT = '"com.docker.compose.service": "llm", "com.docker.compose.project.working_dir": "%s"'
OVERRIDE = "services:\n  llm:\n    environment:\n      OLLAMA_NUM_PARALLEL: 8\n"
UNIT: dict[str, object] = {"managed": "systemd", "unit": "o.service"}
BOX: dict[str, object] = {"managed": "container", "reachable": True, "pid": 77}


@pytest.mark.parametrize(
    ("kind", "platform", "server"),
    [
        ("SystemUnitPlace", "linux", {**UNIT, "user_unit": False, "configured": {"systemctl show o.service": SHELL}}),
        ("UserUnitPlace", "linux", {**UNIT, "user_unit": True, "configured": {"/home/me/env": SHELL}}),
        ("LaunchdPlace", "darwin", {"managed": "app"}),
        ("WindowsPlace", "win32", {"managed": "app", "binary": "C:\\ollama.exe"}),
        ("ComposePlace", "linux", BOX),
        ("DockerRunPlace", "linux", BOX),
        ("RunPlace", "linux", {"managed": "velollm run", "configured": {"its shell": SHELL}}),
    ],
)
def test_what_the_user_set_is_own_in_every_kind_of_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, platform: str, server: dict[str, object]
) -> None:
    (tmp_path / "registry.json").write_text('{"Environment": {"OLLAMA_NUM_PARALLEL": ["8", 1]}}')
    monkeypatch.setitem(sys.modules, "winreg", tests.fake_winreg)
    monkeypatch.setenv("FAKE_REGISTRY", str(tmp_path / "registry.json"))
    (tmp_path / "compose.override.yaml").write_text(OVERRIDE)
    (tmp_path / "proc" / "77").mkdir(parents=True)
    (tmp_path / "proc" / "77" / "cgroup").write_text(f"0::/docker-{'a1' * 32}.scope\n")
    box = IN_BOX % (IN_PROJECT % tmp_path if kind == "ComposePlace" else "")
    programs = Programs({"launchctl getenv OLLAMA_NUM_PARALLEL": "8\n", f"docker inspect {'a1' * 32}": box})
    known = ground(tmp_path, ServerFacts.model_validate(server), system(tmp_path, programs, platform=platform))
    found = OllamaPlaces(Ollama(), MODEL, tmp_path / "ollama.env", ground=known)
    assert type(found.environment).__name__ == kind
    assert found.own_knobs() == {"slots": 8}
    ours = OllamaPlaces(Ollama(), MODEL, tmp_path / "ollama.env", ground=known, recorded=SHELL)
    assert ours.own_knobs() == ({"slots": 8} if found.environment.owned else {})


def test_apply_and_undo_leave_no_trace(tmp_path: Path, fake: FakeOllama) -> None:
    before, journal = fake.digests(), Journal(tmp_path / "journal")
    apply(places(tmp_path), CHANGES, journal)
    assert (tmp_path / "ollama.env").read_text() == "OLLAMA_NUM_PARALLEL=2\n"
    assert fake.digests()[f"{MODEL}-before-velollm:latest"] == before[f"{MODEL}:latest"]
    undo_flight(journal)
    assert fake.digests() == before
    assert not (tmp_path / "ollama.env").exists()


def test_flights_over_each_other_come_off_one_by_one(tmp_path: Path, fake: FakeOllama) -> None:
    before, journal = fake.digests(), Journal(tmp_path / "journal")
    apply(places(tmp_path), [("model", "num_thread", "1")], journal)
    first = fake.digests()
    apply(places(tmp_path), [("model", "num_ctx", "512")], journal)
    model = fake.find(MODEL)
    assert model is not None
    assert model.parameters == (("num_ctx", "512"), ("num_thread", "1"))
    undo_flight(journal)
    assert fake.digests() == first
    undo_flight(journal)
    assert fake.digests() == before


def test_a_removed_parameter_gives_way_to_the_originals_own(tmp_path: Path, fake: FakeOllama) -> None:
    fake.store[f"{MODEL}:latest"] = StoredModel("weights", (("num_ctx", "512"),))
    before, journal = fake.digests()[f"{MODEL}:latest"], Journal(tmp_path / "journal")
    apply(places(tmp_path), [("model", "num_ctx", "1024"), ("model", "num_thread", "1")], journal)
    apply(places(tmp_path), [("model", "num_thread", None)], journal)
    model = fake.find(MODEL)
    assert model is not None
    assert model.parameters == (("num_ctx", "1024"),)
    apply(places(tmp_path), [("model", "num_ctx", None)], journal)
    assert fake.digests()[f"{MODEL}:latest"] == before
    for _ in range(3):
        undo_flight(journal)
    assert fake.digests() == {f"{MODEL}:latest": before}


@pytest.mark.parametrize("earlier", [[], [("model", "num_ctx", "1024")]])
def test_the_originals_own_parameter_can_be_overridden_with_the_engines_default(
    tmp_path: Path, fake: FakeOllama, earlier: list[tuple[str, str, str]]
) -> None:
    own = (("num_ctx", "512"), ("stop", '"x"'))
    fake.store[f"{MODEL}:latest"] = StoredModel("weights", own)
    before, journal = fake.digests(), Journal(tmp_path / "journal")
    found = OllamaPlaces(Ollama(), MODEL, tmp_path / "ollama.env", override=True)
    if earlier:
        apply(found, earlier, journal)
    apply(found, [("model", "num_ctx", None)], journal)
    assert fake.bodies("/api/create")[-1]["parameters"] == {"num_ctx": None}
    model = fake.find(MODEL)
    assert model is not None
    assert model.parameters == (("num_ctx", "<nil>"), ("stop", '"x"'))
    assert found.read_settings() == {}
    apply(found, [("model", "num_thread", "1")], journal)
    assert fake.bodies("/api/create")[-1]["parameters"] == {"num_ctx": None, "num_thread": 1}
    for _ in range(3):
        undo_flight(journal)
    assert fake.digests() == before


def test_drafting_is_off_by_default_only_where_it_is_said(tmp_path: Path, fake: FakeOllama) -> None:
    fake.store[f"{MODEL}:latest"] = StoredModel("weights", (("draft_num_predict", "8"),))
    found = OllamaPlaces(Ollama(), MODEL, tmp_path / "ollama.env", override=True)
    apply(found, [("model", "draft_num_predict", None)], Journal(tmp_path / "journal"))
    assert fake.bodies("/api/create")[-1]["parameters"] == {"draft_num_predict": 0}


def test_nothing_to_remove_is_nothing_to_write(tmp_path: Path) -> None:
    assert places(tmp_path).writes([("model", "num_thread", None)]) == []


def test_beside_leaves_the_name_alone(tmp_path: Path, fake: FakeOllama) -> None:
    before, journal = fake.digests(), Journal(tmp_path / "journal")
    found = places(tmp_path, beside=True)
    apply(found, [("model", "num_thread", "1")], journal)
    assert fake.digests().keys() == {f"{MODEL}:latest", f"{MODEL}-velollm:latest"}
    assert fake.digests()[f"{MODEL}:latest"] == before[f"{MODEL}:latest"]
    assert found.label("model") == "Ollama model tiny-python-velollm"
    assert found.next_step() == "Use it: ollama run tiny-python-velollm"
    undo_flight(journal)
    assert fake.digests() == before


def test_a_copy_of_other_weights_is_not_the_original(tmp_path: Path, fake: FakeOllama) -> None:
    apply(places(tmp_path), [("model", "num_thread", "1")], Journal(tmp_path / "journal"))
    fake.store[f"{MODEL}:latest"] = StoredModel("pulled", (("num_ctx", "512"),))
    found = places(tmp_path)
    assert found.own_knobs() == {"context_tokens": 512}
    with pytest.raises(VeloError, match="tiny-python-before-velollm is not the original of tiny-python any more"):
        found.writes([("model", "num_thread", "1")])


def test_without_a_server_only_the_environment_can_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:1")
    found = places(tmp_path)
    assert found.read_settings() == {}
    assert [target.label for target, _, _ in found.writes(CHANGES)] == [str(tmp_path / "ollama.env")]


def test_variables_that_tune() -> None:
    tuning = {"OLLAMA_NUM_PARALLEL": "1", "LLAMA_ARG_THREADS": "1", "OLLAMA_FLASH_ATTENTION": "1"}
    assert tuning_of({**tuning, "OLLAMA_HOST": "h", "OLLAMA_MODELS": "m", "PATH": "p"}) == tuning
