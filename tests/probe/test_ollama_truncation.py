"""A prompt above the context, as recorded from a real server."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fake_ollama import MODEL, FakeOllama
from velollm.backends.ollama_http import OllamaApi
from velollm.errors import VeloError
from velollm.facts import Facts, LoadedModelFacts, ServerFacts, TruncationFacts
from velollm.probe.ollama_truncation import (
    CHEAP_CONTEXT_TOKENS,
    choose_probed,
    make_prompt,
    parse_excess,
    probe_server,
    probe_truncation,
)

NAME = f"{MODEL}:latest"
CUT = TruncationFacts(model=NAME, context_tokens=512, prompt_tokens=6011, kept_tokens=258)


@pytest.fixture
def api(fake: FakeOllama) -> Iterator[OllamaApi]:
    found = OllamaApi(fake.url)
    yield found
    found.close()


def hold(fake: FakeOllama, seconds: float = 600) -> None:
    fake.loaded[NAME] = datetime.now(UTC) + timedelta(seconds=seconds)


def test_the_cut_is_proved_by_the_servers_own_counts(api: OllamaApi) -> None:
    assert probe_truncation(api, NAME, 2048) == CUT


def test_a_model_in_memory_stays_there_without_a_reload(fake: FakeOllama, api: OllamaApi) -> None:
    hold(fake)
    assert probe_truncation(api, NAME, 2048) == CUT
    bodies = fake.bodies("/api/generate")
    assert [body["truncate"] for body in bodies if "truncate" in body] == [False]
    assert all("num_ctx" not in body["options"] and body["keep_alive"] > 590 for body in bodies)
    assert len(bodies) == 2


def test_a_wide_context_is_made_small_and_given_back(fake: FakeOllama, api: OllamaApi) -> None:
    hold(fake)
    assert probe_truncation(api, NAME, CHEAP_CONTEXT_TOKENS + 1) == CUT
    first, second, again = fake.bodies("/api/generate")
    assert first["options"]["num_ctx"] == second["options"]["num_ctx"] == 512
    assert again["options"] == {}
    assert again["keep_alive"] > 590
    assert NAME in fake.loaded


def test_a_model_that_was_not_in_memory_is_unloaded_again(fake: FakeOllama, api: OllamaApi) -> None:
    assert probe_truncation(api, NAME, None) == CUT
    assert fake.bodies("/api/generate")[-1]["keep_alive"] == 0
    assert fake.loaded == {}


def test_another_refusal_is_told_as_it_is(fake: FakeOllama, api: OllamaApi) -> None:
    fake.faults += ["load fails"]
    with pytest.raises(VeloError, match=r"the long prompt was refused: .*exit status 1"):
        probe_truncation(api, NAME, 2048)


def test_a_server_that_takes_all_of_it_proves_nothing(
    fake: FakeOllama, api: OllamaApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.fake_ollama._LONG", 10**9)
    assert probe_truncation(api, NAME, 2048) is None


def test_the_facts_say_where_it_was_seen(fake: FakeOllama) -> None:
    held = LoadedModelFacts(name=NAME, context_tokens=2048)
    facts = Facts(server=ServerFacts(url=fake.url, reachable=True, loaded=(held,), installed=(NAME,)))
    chosen = choose_probed(facts)
    assert (chosen.model, chosen.context_tokens) == (NAME, 2048)
    hold(fake)
    found = probe_server(facts, chosen)
    assert found.server is not None
    assert found.server.truncation == CUT
    assert found.sources["server.truncation"] == f"{fake.url}/api/generate"


def test_the_price_is_named_before() -> None:
    def price(**server: object) -> str:
        known = {"url": "http://127.0.0.1:1", "reachable": True, "installed": ("a:1b",), **server}
        return choose_probed(Facts(server=ServerFacts.model_validate(known))).price

    assert "loaded for that" in price(loaded=())
    assert "one short answer" in price(loaded=({"name": "a:1b", "context_tokens": 4096},))
    assert "unloaded for a moment" in price(loaded=({"name": "a:1b", "context_tokens": 262144},))


@pytest.mark.parametrize("server", [None, {"reachable": False}, {"reachable": True, "url": "http://127.0.0.1:1"}])
def test_nobody_to_ask_is_an_error(server: dict[str, object] | None) -> None:
    with pytest.raises(VeloError):
        choose_probed(Facts(server=None if server is None else ServerFacts.model_validate(server)))


@given(st.integers(1, 500))
def test_the_prompt_has_a_word_for_each_token_at_least(tokens: int) -> None:
    assert len(make_prompt(tokens).split()) == 2 * tokens


@given(st.text(max_size=60))
def test_any_refusal_can_be_read(reason: str) -> None:
    assert parse_excess(reason) is None or reason
    assert parse_excess(f"request (7 tokens) exceeds the available context size (4 tokens){reason}") == (7, 4)
