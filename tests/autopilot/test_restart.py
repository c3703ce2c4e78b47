"""A restart of the user's own server: it waits for running answers, asks before it cuts one off, and looks after it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fake_ollama import FakeOllama
from velollm.autopilot.restart import Patience, find_fault, restart, unload, wait_until_up
from velollm.backends.ollama import OllamaBackend
from velollm.backends.ollama_http import LoadedModel
from velollm.errors import VeloError
from velollm.facts import FailedLoad, LoadedModelFacts, ServerActivity, ServerFacts
from velollm.targets.activation import ManualActivation
from velollm.targets.environment import Changes

MODEL = "tiny-python"


class Server(OllamaBackend):
    """A server that is at work on so many answers each time that it is asked, and answers at a given look."""

    def __init__(self, busy: list[int | None], up_after: int = 0, url: str | None = None) -> None:
        super().__init__(url or "http://127.0.0.1:1")
        self._busy, self._up_after = busy, up_after
        self.looks = 0
        self.__dict__["version"] = "0.33.0"

    def busy(self) -> int | None:
        return self._busy.pop(0) if len(self._busy) > 1 else self._busy[0]

    def forget(self) -> None:
        self.looks += 1
        self.__dict__["version"] = "0.33.0" if self.looks > self._up_after else None


class Steps(ManualActivation):
    """A restart that only counts."""

    ran = 0

    def run(self) -> None:
        Steps.ran += 1


class Pilot:
    """A cockpit that answers as it is told."""

    def __init__(self, answer: bool = True) -> None:
        self.answer, self.questions, self.texts = answer, list[str](), list[str]()

    def __call__(self, done: float, text: str, left_s: float | None = None, /) -> None:
        self.texts.append(text)

    def note(self, text: str) -> None:
        self.texts.append(text)

    def ask(self, question: str) -> bool:
        self.questions.append(question)
        return self.answer


class Clock:
    """Time that only pauses move."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def patience() -> Iterator[Patience]:
    clock = Clock()
    Steps.ran = 0
    yield Patience(10.0, 5.0, clock, clock.pause)


ACTIVATION = Steps(("systemctl restart ollama",), "")


def test_it_waits_until_the_last_answer_is_there(patience: Patience) -> None:
    pilot = Pilot()
    done = restart(ACTIVATION, Server([2, 1, 0]), pilot, patience)
    assert done is not None
    assert (done.steps, done.cut, Steps.ran) == (("systemctl restart ollama",), 0, 1)
    assert pilot.questions == []
    assert "waiting until your server has finished 2 answers" in pilot.texts
    assert patience.clock() == 1.0


def test_a_server_that_cannot_be_looked_into_is_not_waited_for(patience: Patience) -> None:
    done = restart(ACTIVATION, Server([None]), Pilot(), patience)
    assert done is not None
    assert done.cut is None
    assert patience.clock() == 0.0


def test_nobody_says_yes_to_cutting_an_answer_off(patience: Patience) -> None:
    pilot = Pilot(answer=False)
    assert restart(ACTIVATION, Server([1]), pilot, patience) is None
    assert Steps.ran == 0
    assert patience.clock() == 10.0
    assert pilot.questions == ["Your server is still at work on 1 answer. Restart it now, and cut that off?"]


def test_what_was_cut_off_is_told(patience: Patience) -> None:
    done = restart(ACTIVATION, Server([3]), Pilot(), patience)
    assert done is not None
    assert (done.cut, Steps.ran) == (3, 1)


def test_a_server_that_comes_back_late(patience: Patience) -> None:
    wait_until_up(Server([0], up_after=4), patience)
    with pytest.raises(VeloError, match="did not answer again within 5 s"):
        wait_until_up(Server([0], up_after=99), patience)


def test_a_server_that_did_not_answer_before_is_not_waited_for(patience: Patience) -> None:
    server = Server([None], up_after=99)
    server.__dict__["version"] = None
    assert restart(ACTIVATION, server, Pilot(), patience) is not None
    assert (Steps.ran, patience.clock()) == (1, 0.0)


class Holder(Server):
    """A server that gives its models up at a given look."""

    def __init__(self, url: str, gone_after: int) -> None:
        super().__init__([0], url=url)
        self._gone_after = gone_after

    def holding(self) -> list[LoadedModel]:
        self.looks += 1
        return [LoadedModel(f"{MODEL}:latest", 1, 0)] if self.looks <= self._gone_after else []


@pytest.mark.parametrize(("gone_after", "looks"), [(0, 1), (3, 4), (1000, 21)])
def test_a_model_at_work_is_waited_for(fake: FakeOllama, patience: Patience, gone_after: int, looks: int) -> None:
    pilot, backend = Pilot(), Holder(fake.url, gone_after)
    unload([LoadedModel(f"{MODEL}:latest", 1, 0)], backend, pilot, patience)
    backend.api.close()
    assert [body["keep_alive"] for body in fake.bodies("/api/generate")] == [0]
    assert backend.looks == looks


def look(
    fake: FakeOllama, now: ServerFacts | None, changes: Changes | None = None, before: ServerFacts | None = None
) -> str | None:
    backend = OllamaBackend(fake.url)
    try:
        return find_fault(backend, MODEL, changes or {}, before, lambda: now)
    finally:
        backend.api.close()


def test_a_server_that_works_has_no_fault(fake: FakeOllama) -> None:
    assert look(fake, ServerFacts(environment={"A": "1"}), {"A": "1"}) is None
    assert look(fake, None, {"A": "1"}) is None
    asked = [path for _, path, _ in fake.requests]
    assert asked.count("/api/generate") == 4  # each time it is loaded, and answers


def test_a_setting_that_did_not_arrive_is_a_fault(fake: FakeOllama) -> None:
    found = look(fake, ServerFacts(pid=3, environment={}), {"A": "1"})
    assert found == "A is not set, not 1 (environment of process 3)"


def test_why_a_model_does_not_load_is_read_from_the_log(fake: FakeOllama) -> None:
    fake.refuse["POST /api/generate"] = 500
    reason = "quantized V cache requires flash_attn to be enabled"
    failures = (FailedLoad(model="other", reason="x"), FailedLoad(model=f"{MODEL}:latest", reason=reason))
    now = ServerFacts(activity=ServerActivity(failures=failures))
    assert look(fake, now) == f"{MODEL} does not load any more: {reason}"
    by_path = ServerFacts(activity=ServerActivity(failures=(FailedLoad(model="/blobs/sha256-1", reason="why"),)))
    assert look(fake, by_path) == f"{MODEL} does not load any more: why"
    assert "does not load any more: Ollama refused" in (look(fake, None) or "")


def test_an_answer_that_breaks_off_is_a_fault(fake: FakeOllama) -> None:
    fake.faults = [None, "killed"]  # type: ignore[list-item]
    found = look(fake, None)
    assert found is not None
    assert found.startswith(f"{MODEL} does not answer any more: ")


def computes(*libraries: str, gpu_bytes: int | None = None) -> ServerFacts:
    loaded = (LoadedModelFacts(name=f"{MODEL}:latest", gpu_bytes=gpu_bytes),)
    return ServerFacts(activity=ServerActivity(compute=libraries or None), loaded=loaded)


def test_lost_gpus_are_a_fault(fake: FakeOllama) -> None:
    assert look(fake, computes("cpu"), before=computes("CUDA")) == "the server finds no GPU any more (before: CUDA)"
    assert look(fake, computes("CUDA"), before=computes("CUDA")) is None
    assert look(fake, computes("cpu"), before=computes("cpu")) is None
    assert look(fake, computes(), before=computes("CUDA")) is None
    fallen = look(fake, computes(gpu_bytes=0), before=computes(gpu_bytes=5))
    assert fallen == f"{MODEL} is in main memory now, not on the GPU as before"
