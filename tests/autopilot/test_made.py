"""Wishes for made models, and the stand-in for a known model that is not here."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fake_ollama import FakeOllama, recorded
from velollm.autopilot.chart import choose_model, find_model_facts
from velollm.autopilot.made import Wish, draw, make_model, note_of, stand_in
from velollm.backends.embedded import EmbeddedBackend
from velollm.backends.ollama import OllamaBackend
from velollm.config import user_paths
from velollm.errors import UsageError, VeloError
from velollm.facts import Facts, MadeFacts, MemoryFacts, ModelFacts
from velollm.models.gguf import model_facts, read_gguf
from velollm.units import GIB


class Passenger:
    """A cockpit that keeps what it was told."""

    def __init__(self) -> None:
        self.shares: list[float] = []
        self.notes: list[str] = []

    def __call__(self, done: float, text: str, left_s: float | None = None, /) -> None:
        self.shares.append(done)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def ask(self, question: str) -> bool:
        raise AssertionError(f"nobody is there to answer {question!r}")


def machine(memory_bytes: int = 16 * GIB) -> Facts:
    return Facts(memory=MemoryFacts(total_bytes=memory_bytes))


@pytest.mark.parametrize(
    "wish",
    [
        Wish(),
        Wish("llama:tiny", like="x.gguf"),
        Wish(like="x.gguf", layers=2),
        Wish("llama:tiny", agreement=0.8),
        Wish("llama:tiny", period=8),
    ],
)
def test_wishes_that_contradict_themselves(wish: Wish) -> None:
    with pytest.raises(UsageError) as caught:
        draw(wish)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (Wish("llama:tiny", quantization="q9"), "cannot be made in 'q9'"),
        (Wish("llama:tiny", predictability=7.0), "predictability of 7 cannot be had"),
        (Wish("llama:tiny", predictability=0.8, period=5000), "cannot repeat every 5000 tokens"),
        (Wish("llama:tiny", layers=9), "has 3 layers, not 9"),
        (Wish("llama:tiny", predictability=0.8, agreement=0.5), "has no MTP layers that could agree"),
        (Wish("qwen35:tiny", predictability=0.8, agreement=5.0), "agreement of 5 cannot be had"),
    ],
)
def test_wishes_that_no_model_fulfils(wish: Wish, words: str) -> None:
    with pytest.raises(VeloError, match=words) as caught:
        draw(wish)
    assert caught.value.hint


def test_a_model_and_its_draft(tmp_path: Path) -> None:
    path, facts = make_model(Wish("llama:tiny", predictability=0.8, period=32), tmp_path / "m.gguf", Passenger())
    assert facts.made == MadeFacts(kind="predictable", predictability=0.8, period=32)
    draft, drafted = make_model(Wish(drafts_for=path, agreement=0.7), tmp_path / "d.gguf", Passenger())
    assert drafted.made == MadeFacts(kind="predictable", predictability=0.8, period=32, agreement=0.7)
    assert drafted.vocab == facts.vocab
    assert draft.stat().st_size < path.stat().st_size
    random, _ = make_model(Wish("llama:tiny"), tmp_path / "r.gguf", Passenger())
    with pytest.raises(VeloError, match="no chosen text"):
        draw(Wish(drafts_for=random))


def test_a_file_that_is_there_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "mine.gguf"
    path.write_bytes(b"mine")
    with pytest.raises(VeloError, match="is there already"):
        make_model(Wish("llama:tiny"), path, Passenger())
    assert path.read_bytes() == b"mine"
    passenger = Passenger()
    make_model(Wish("llama:tiny"), path, passenger, replace_file=True)
    assert passenger.shares[-1] == 1.0
    assert list(tmp_path.iterdir()) == [path]


def test_a_twin_of_what_a_server_tells(fake: FakeOllama) -> None:
    blueprint = draw(Wish(like="tiny-python"), fake.url)
    listed = recorded("show")["body"]["tensors"]
    assert {tensor.name for tensor in blueprint.tensors} == {tensor["name"] for tensor in listed}
    with pytest.raises(VeloError, match="there is no model 'quux'"):
        draw(Wish(like="quux"), fake.url)
    with pytest.raises(VeloError, match=r"there is no model 'quux.gguf'"):
        draw(Wish(like="quux.gguf"), fake.url)


def test_a_known_model_that_is_not_here_gets_a_stand_in() -> None:
    paths, passenger = user_paths(), Passenger()
    named = choose_model("qwen3moe:tiny", EmbeddedBackend(), paths, passenger, make=False, probe=machine)
    assert named.path is None
    assert not paths.cache.exists()
    expected = find_model_facts(named, EmbeddedBackend())
    model = choose_model("qwen3moe:tiny", EmbeddedBackend(), paths, passenger, make=True, probe=machine)
    assert (model.name, model.path) == (named.name, paths.cache / "models" / "qwen3moe-tiny-Q4_K_M.gguf")
    assert "Its speed is real, its text means nothing" in passenger.notes[0]
    found = find_model_facts(model, EmbeddedBackend())
    assert found is not None
    assert expected is not None
    assert found.model_copy(update={"path": None, "name": ""}) == expected.model_copy(update={"name": ""})
    with pytest.raises(VeloError, match="there is no model 'quux:8b'"):
        choose_model("quux:8b", EmbeddedBackend(), paths, passenger, make=True, probe=machine)
    # What runs for good (`velollm run`) has no use for text without meaning.
    with pytest.raises(VeloError, match="there is no model 'qwen3:tiny'"):
        choose_model("qwen3:tiny", EmbeddedBackend(), paths, passenger, make=True)


def test_what_no_memory_here_holds_is_not_made() -> None:
    paths = user_paths()
    with pytest.raises(VeloError, match=r"llama3.3:70b needs 39\.\d GiB .* this machine has 16\.0 GiB"):
        stand_in("llama3.3:70b", paths, Passenger(), make=True, probe=machine)
    assert not paths.cache.exists()


def test_ollama_never_gets_one(fake: FakeOllama) -> None:
    backend = OllamaBackend(fake.url)
    with closing(backend.api), pytest.raises(VeloError, match="Ollama has no model 'qwen3:8b'") as caught:
        choose_model("qwen3:8b", backend, user_paths(), Passenger(), make=True, probe=machine)
    assert "--backend embedded" in caught.value.hint
    assert not user_paths().cache.exists()


def test_results_say_that_a_model_was_made(tmp_path: Path) -> None:
    assert note_of(None) == note_of(ModelFacts(name="real")) == ()
    _, facts = make_model(Wish("mamba2:tiny"), tmp_path / "m.gguf", Passenger())
    assert "its speed is real, its text means nothing" in note_of(facts)[0]
    made = MadeFacts(kind="predictable", predictability=0.8, period=64, like="their:8b")
    (note,) = note_of(facts.model_copy(update={"made": made}))
    for words in ("in the shape of their:8b", "0.8 at temperature 1", "every 64 tokens", "accepts is assumed"):
        assert words in note


def test_other_seeds_give_other_weights(tmp_path: Path) -> None:
    wish = Wish("qwen3:tiny", quantization="q4_0")
    first = make_model(wish, tmp_path / "a.gguf", Passenger())[0].read_bytes()
    assert make_model(wish, tmp_path / "b.gguf", Passenger())[0].read_bytes() == first
    assert make_model(replace(wish, seed=2), tmp_path / "c.gguf", Passenger())[0].read_bytes() != first
    assert model_facts(read_gguf(tmp_path / "c.gguf"), "c").file_type == "Q4_0"
