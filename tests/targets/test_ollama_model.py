from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fake_ollama import FakeOllama, StoredModel
from velollm.apply import Write, apply_writes, undo_flight
from velollm.backends.ollama_http import OllamaApi
from velollm.errors import VeloError
from velollm.journal import FlightMeta, Journal
from velollm.targets.base import ABSENT, State, canonical_json, target_from_address
from velollm.targets.ollama_model import (
    OllamaCopyTarget,
    OllamaModelTarget,
    full_tag,
    merge_parameters,
    parse_parameters,
    read_digest,
    with_suffix,
)

MODEL = "tiny-python"
COPY = "tiny-python-before-velollm"
SWAP = "tiny-python-swap-velollm"
META = FlightMeta("0.1.0", "ollama", MODEL, "num_thread=1")


class StopHereError(BaseException):
    """What a killed process does: nothing after it."""


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


def original_of(fake: FakeOllama) -> str:
    model = fake.find(MODEL)
    assert model is not None
    return model.digest


def writes(fake: FakeOllama, parameters: list[list[str]] | None = None) -> list[Write]:
    """The two changes of a flight: the copy of the original, then the model with its parameters."""
    digest = original_of(fake)
    model = OllamaModelTarget(fake.url, MODEL, COPY)
    after = canonical_json({"base": digest, "parameters": parameters or [["num_thread", "1"]]})
    return [
        Write(OllamaCopyTarget(fake.url, COPY, MODEL), State(canonical_json({"digest": digest})), ABSENT),
        Write(model, State(after), model.read()),
    ]


def stop_at(name: str) -> Callable[[str], None]:
    def step(found: str) -> None:
        if found == name:
            raise StopHereError

    return step


def test_apply_and_undo_give_the_digest_back(fake: FakeOllama, journal: Journal) -> None:
    before = fake.digests()
    flight = apply_writes(writes(fake), journal, META)
    assert flight is not None
    between = fake.digests()
    assert between[f"{COPY}:latest"] == before[f"{MODEL}:latest"]
    assert between[f"{MODEL}:latest"] != before[f"{MODEL}:latest"]
    assert fake.bodies("/api/create") == [
        {"model": MODEL, "from": COPY, "parameters": {"num_thread": 1}, "stream": False}
    ]
    result = undo_flight(journal)
    assert result.conflicts == ()
    assert len(result.restored) == 2
    assert fake.digests() == before


def test_the_users_own_parameters_stay(fake: FakeOllama, journal: Journal) -> None:
    own = (("stop", '"<|end|>"'), ("stop", '"<|user|>"'), ("temperature", "0.2"))
    fake.store[f"{MODEL}:latest"] = StoredModel("weights", own)
    before = fake.digests()
    apply_writes(writes(fake, [*(list(pair) for pair in own), ["use_mmap", "true"]]), journal, META)
    model = fake.find(MODEL)
    assert model is not None
    assert model.parameters == (*own, ("use_mmap", "true"))
    assert fake.bodies("/api/create")[0]["parameters"] == {"use_mmap": True}
    undo_flight(journal)
    assert fake.digests() == before


def test_the_name_is_whole_at_every_moment_of_undo(fake: FakeOllama, journal: Journal) -> None:
    apply_writes(writes(fake), journal, META)
    fake.requests.clear()
    undo_flight(journal)
    changing = [(method, path, body) for method, path, body in fake.requests if path != "/api/show" and method != "GET"]
    assert [(path, body.get("destination") or body.get("model")) for _, path, body in changing] == [
        ("/api/copy", SWAP),
        ("/api/copy", MODEL),
        ("/api/delete", SWAP),
        ("/api/delete", SWAP),
        ("/api/delete", COPY),
    ]


@pytest.mark.parametrize("step", ["before 0", "before 1", "stage 1", "write 0", "done 0", "write 1", "done 1", "end"])
def test_stopped_in_apply(fake: FakeOllama, journal: Journal, step: str) -> None:
    before = fake.digests()
    with pytest.raises(StopHereError):
        apply_writes(writes(fake), journal, META, stop_at(step))
    undo_flight(journal)
    assert fake.digests() == before


@pytest.mark.parametrize("call", ["POST /api/copy", "POST /api/create", "POST /api/show"])
def test_refused_in_apply(fake: FakeOllama, journal: Journal, call: str) -> None:
    before, planned = fake.digests(), writes(fake)
    fake.refuse[call] = 500
    with pytest.raises(VeloError, match="Ollama refused"):
        apply_writes(planned, journal, META)
    fake.refuse.clear()
    undo_flight(journal)
    assert fake.digests() == before


@pytest.mark.parametrize("call", ["POST /api/copy", "DELETE /api/delete"])
def test_refused_in_undo(fake: FakeOllama, journal: Journal, call: str) -> None:
    before = fake.digests()
    apply_writes(writes(fake), journal, META)
    fake.refuse[call] = 500
    with pytest.raises(VeloError, match="not wholly undone"):
        undo_flight(journal)
    fake.refuse.clear()
    undo_flight(journal)
    assert fake.digests() == before


@pytest.mark.parametrize("step", ["restore 1", "undone 1", "restore 0", "undone 0"])
def test_stopped_in_undo(fake: FakeOllama, journal: Journal, step: str) -> None:
    before = fake.digests()
    apply_writes(writes(fake), journal, META)
    with pytest.raises(StopHereError):
        undo_flight(journal, on_step=stop_at(step))
    undo_flight(journal)
    assert fake.digests() == before


def test_stopped_between_the_calls_of_a_restore(fake: FakeOllama, journal: Journal) -> None:
    before = fake.digests()
    apply_writes(writes(fake), journal, META)
    changed = fake.find(MODEL)
    assert changed is not None
    fake.store[f"{SWAP}:latest"] = changed
    undo_flight(journal)
    assert fake.digests() == before


def test_stopped_before_the_swap_went_away(fake: FakeOllama, journal: Journal) -> None:
    before = fake.digests()
    apply_writes(writes(fake), journal, META)
    changed, kept = fake.find(MODEL), fake.find(COPY)
    assert changed is not None
    assert kept is not None
    fake.store[f"{SWAP}:latest"], fake.store[f"{MODEL}:latest"] = changed, kept
    undo_flight(journal)
    assert fake.digests() == before


@pytest.mark.parametrize("change", [StoredModel("weights", (("num_ctx", "512"),)), StoredModel("pulled"), None])
def test_what_somebody_changed_since_is_left_alone_and_the_original_kept(
    fake: FakeOllama, journal: Journal, change: StoredModel | None
) -> None:
    original = fake.find(MODEL)
    assert original is not None
    apply_writes(writes(fake), journal, META)
    del fake.store[f"{MODEL}:latest"]
    if change is not None:
        fake.store[f"{MODEL}:latest"] = change
    with pytest.raises(VeloError, match="is kept, because tiny-python is another model now") as caught:
        undo_flight(journal)
    assert caught.value.hint.endswith(f"ollama rm {COPY}")
    assert fake.find(MODEL) == change
    assert fake.find(COPY) == original
    del fake.store[f"{COPY}:latest"]
    undo_flight(journal)
    assert fake.find(MODEL) == change


def test_a_model_that_changed_since_the_plan_is_not_touched(fake: FakeOllama, journal: Journal) -> None:
    planned = writes(fake)
    mine = StoredModel("other weights")
    fake.store[f"{MODEL}:latest"] = mine
    with pytest.raises(VeloError, match=r"changed since the plan was made|no longer what it was"):
        apply_writes(planned, journal, META)
    undo_flight(journal)
    assert fake.store == {f"{MODEL}:latest": mine}


def test_a_copy_that_is_gone_is_told(fake: FakeOllama) -> None:
    model = OllamaModelTarget(fake.url, MODEL, COPY)
    with pytest.raises(VeloError, match="copy of the original, is gone"):
        model.write(State(canonical_json({"original": "0" * 64})))
    with pytest.raises(VeloError, match="no longer what it was"):
        model.write(State(canonical_json({"base": "0" * 64, "parameters": []})))


def test_a_model_beside_goes_away_again(fake: FakeOllama, journal: Journal) -> None:
    before = fake.digests()
    beside = OllamaModelTarget(fake.url, "tiny-python-velollm", MODEL)
    assert beside.read() == ABSENT
    after = State(canonical_json({"base": original_of(fake), "parameters": [["num_thread", "1"]]}))
    apply_writes([Write(beside, after, ABSENT)], journal, META)
    assert fake.digests().keys() == before.keys() | {"tiny-python-velollm:latest"}
    assert fake.find(MODEL) == StoredModel("weights")
    undo_flight(journal)
    assert fake.digests() == before


def test_addresses_find_the_place_again(fake: FakeOllama) -> None:
    for target in (OllamaCopyTarget(fake.url, COPY, MODEL), OllamaModelTarget(fake.url, MODEL, COPY)):
        again = target_from_address(target.address())
        assert type(again) is type(target)
        assert (again.key, again.label) == (target.key, target.label)
        assert again.read() == target.read()


def test_undo_without_a_server_says_what_to_do(fake: FakeOllama) -> None:
    with pytest.raises(VeloError, match="does not answer"):
        OllamaModelTarget("http://127.0.0.1:1", MODEL, COPY).read()


def test_digests_by_full_name(fake: FakeOllama) -> None:
    api = OllamaApi(fake.url)
    try:
        assert read_digest(api, MODEL) == read_digest(api, f"{MODEL}:latest") == original_of(fake)
        assert read_digest(api, "tiny") is None
    finally:
        api.close()


@pytest.mark.parametrize(
    ("name", "suffixed", "full"),
    [
        ("llama3", "llama3-velollm", "llama3:latest"),
        ("llama3:8b", "llama3-velollm:8b", "llama3:8b"),
        ("me/own:q4", "me/own-velollm:q4", "me/own:q4"),
        ("host:5000/me/own", "host:5000/me/own-velollm", "host:5000/me/own:latest"),
    ],
)
def test_names(name: str, suffixed: str, full: str) -> None:
    assert with_suffix(name, "-velollm") == suffixed
    assert full_tag(name) == full


def test_parameters_of_show() -> None:
    text = 'num_ctx                        1024\nstop                           "<|end|>"\nstop  "a b"\n\nodd\n'
    assert parse_parameters(text) == [["num_ctx", "1024"], ["stop", '"<|end|>"'], ["stop", '"a b"']]


PAIRS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("123")), max_size=6)


@given(PAIRS, st.dictionaries(st.sampled_from("abc"), st.sampled_from("123")))
def test_merged_parameters(pairs: list[tuple[str, str]], changes: dict[str, str]) -> None:
    merged = merge_parameters([list(pair) for pair in pairs], changes)
    assert merged == sorted(merged)
    for name, value in changes.items():
        assert [pair for pair in merged if pair[0] == name] == [[name, value]]
    assert [p for p in merged if p[0] not in changes] == sorted(list(p) for p in pairs if p[0] not in changes)
