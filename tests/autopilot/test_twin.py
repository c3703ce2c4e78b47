"""A model whose files may not be read, tried on its twin: made after a yes, kept, used again, named in every result."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import velollm.autopilot as autopilot
from tests.autopilot.test_restart import Pilot
from tests.fake_ollama import MODEL, FakeOllama, StoredModel, recorded
from velollm.autopilot import Course, Order, Outcome, chart, fly
from velollm.autopilot.trial import Trial
from velollm.autopilot.twin import TwinError, flown_on_twin
from velollm.backends.ollama import OllamaBackend
from velollm.backends.ollama_store import find_ollama_blob
from velollm.config import user_paths
from velollm.errors import VeloError
from velollm.facts import Facts
from velollm.models.gguf import model_facts
from velollm.models.header import read_gguf
from velollm.units import MIB


@pytest.fixture
def course(fake: FakeOllama, monkeypatch: pytest.MonkeyPatch) -> Iterator[Course]:
    """A server here whose store is somebody else's; its program is here too."""
    monkeypatch.setenv("OLLAMA_HOST", fake.url)
    monkeypatch.setattr("velollm.backends.ollama.find_binary", lambda _: "/usr/bin/ollama")
    fake.store[f"{MODEL}:latest"] = StoredModel("weights", (("num_ctx", "2048"), ("stop", '"<|a|>"'), ("stop", '"b"')))
    backend = OllamaBackend()
    monkeypatch.setattr("velollm.backends.ollama.backend", backend)
    order = Order(MODEL, "ollama", pins={"context_tokens": 1024}, budget_s=30.0, probe=lambda: Facts(gpus=()))
    yield chart(order, Pilot())
    backend.api.close()


def twins() -> Path:
    return user_paths().cache / "twins"


def stores() -> list[Path]:
    return [path for path in twins().iterdir() if path.is_dir()]


def test_the_twin_is_as_the_server_shows_the_model(course: Course) -> None:
    backend, pilot = course.backend, Pilot()
    assert isinstance(backend, OllamaBackend)
    assert backend.untriable(course.model) is not None
    assert backend.needs_twin(course.model)
    with flown_on_twin(course, pilot) as found:
        assert found is not None
        assert found.model.path == found.twin is not None
        # What starts private servers needs to know nothing of twins.
        assert backend.untriable(found.model) is None
        assert backend.models_dir(found.model) == stores()[0]
        assert found.model.name == MODEL
        model = found.facts.model
    assert len(pilot.questions) == 1
    assert "MiB of random weights" in pilot.questions[0]
    assert "Its speed is real, its text means nothing." in pilot.texts[-1]
    assert model is not None
    assert model.made is not None
    assert model.made.like == MODEL
    assert found.twin is not None
    named = {tensor["name"]: tensor["type"].lower() for tensor in recorded("show")["body"]["tensors"]}
    assert {tensor.name: tensor.type_name for tensor in read_gguf(found.twin).tensors} == named
    assert (found.plan, found.places) == (course.plan, course.places)


def test_its_store_is_one_that_ollama_reads(course: Course) -> None:
    with flown_on_twin(course, Pilot()) as found:
        assert found is not None
    (store,) = stores()
    assert find_ollama_blob(MODEL, store) == found.twin
    blobs = {path.name: path.read_bytes() for path in (store / "blobs").iterdir()}
    assert all(name == f"sha256-{hashlib.sha256(content).hexdigest()}" for name, content in blobs.items())
    manifest = json.loads((store / "manifests/registry.ollama.ai/library" / MODEL / "latest").read_bytes())
    parts = {part["mediaType"].rpartition(".")[2]: part for part in (manifest["config"], *manifest["layers"])}
    content = {kind: blobs[part["digest"].replace(":", "-")] for kind, part in parts.items()}
    assert all(part["size"] == len(content[kind]) for kind, part in parts.items())
    assert json.loads(content["params"]) == {"num_ctx": 2048, "stop": ["<|a|>", "b"]}
    details = recorded("show")["body"]["details"]
    config = json.loads(content["v1+json"])
    assert (config["model_family"], config["file_type"]) == (details["family"], details["quantization_level"])


def test_it_is_used_again_and_replaced_by_another(course: Course, fake: FakeOllama) -> None:
    with flown_on_twin(course, Pilot()) as found:
        assert found is not None
        assert found.twin is not None
        made_at = found.twin.stat().st_mtime_ns
    pilot = Pilot(answer=False)
    with flown_on_twin(course, pilot) as again:
        assert again is not None
        assert again.twin == found.twin
    assert pilot.questions == []
    assert found.twin.stat().st_mtime_ns == made_at
    fake.store["other:latest"] = fake.store[f"{MODEL}:latest"]
    with flown_on_twin(replace(course, model=replace(course.model, name="other")), Pilot()) as other:
        assert other is not None
    assert [find_ollama_blob("other", store) for store in stores()] == [other.twin]


def test_a_damaged_twin_is_made_again(course: Course) -> None:
    with flown_on_twin(course, Pilot()) as found:
        assert found is not None
    assert found.twin is not None
    found.twin.write_bytes(found.twin.read_bytes()[:-1])
    pilot = Pilot()
    with flown_on_twin(course, pilot) as again:
        assert again is not None
    assert len(pilot.questions) == 1
    assert model_facts(read_gguf(found.twin), MODEL).made is not None


def test_no_means_that_nothing_is_made(course: Course, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autopilot, "chart", lambda order, cockpit: course)
    outcome = fly(course.order, Pilot(answer=False), lambda _: True)
    assert (outcome.trial, outcome.applied, outcome.advised) == (None, False, True)
    assert outcome.applied_reason.startswith("not tried: the model's files cannot be read: join the server's group")
    assert stores() == []


def test_a_full_disk_is_said_before_the_question(course: Course, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=1_000_000)
    monkeypatch.setattr("velollm.autopilot.twin.shutil.disk_usage", lambda _: usage)
    monkeypatch.setattr(autopilot, "chart", lambda order, cockpit: course)
    pilot = Pilot()
    outcome = fly(course.order, pilot, lambda _: True)
    assert pilot.questions == []
    assert outcome.trial is None
    for words in ("not tried: the model's files cannot be read, and a twin of it needs", "977 KiB free"):
        assert words in outcome.applied_reason
    # What an earlier twin takes is room for the next one.
    old = twins() / "old" / "blobs" / "sha256-0"
    old.parent.mkdir(parents=True)
    old.write_bytes(bytes(12 * MIB))
    with pytest.raises(TwinError, match="needs"), flown_on_twin(course, pilot):
        raise AssertionError("the real disk is the same")
    assert pilot.questions != []


def test_two_flights_do_not_share_twins(course: Course) -> None:
    with (
        flown_on_twin(course, Pilot()) as found,
        pytest.raises(TwinError, match="another flight is using a twin"),
        flown_on_twin(course, Pilot()),
    ):
        raise AssertionError(found)


def test_a_flight_says_what_it_was_measured_on(course: Course, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Course] = []

    def try_plan(course: Course, cockpit: object, **_: object) -> Trial:
        tried.append(course)
        return Trial(course.plan, None, True, "kept for a test")  # type: ignore[arg-type]

    monkeypatch.setattr(autopilot, "chart", lambda order, cockpit: course)
    monkeypatch.setattr(autopilot, "try_plan", try_plan)
    asked: list[Outcome] = []

    def confirm(outcome: Outcome) -> bool:
        asked.append(outcome)
        return False

    outcome = fly(course.order, Pilot(), confirm)
    assert [found.twin for found in tried] == [asked[0].course.twin]
    assert tried[0].twin is not None
    assert outcome.applied_reason.endswith(
        "kept for a test; measured on a twin: the speed is that of the shape, the text meant nothing"
    )

    def fail(course: Course, cockpit: object, **_: object) -> Trial:
        raise VeloError("the engine did not take it", "")

    monkeypatch.setattr(autopilot, "try_plan", fail)
    failed = fly(course.order, Pilot(), confirm)
    assert failed.applied_reason.endswith("and the trial of its twin failed: the engine did not take it")
    assert (failed.trial, failed.applied) == (None, False)
