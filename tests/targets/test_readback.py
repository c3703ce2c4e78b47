from __future__ import annotations

import pytest

from velollm.facts import LoadedModelFacts, ServerFacts
from velollm.targets.readback import differences

SERVER = ServerFacts(pid=7, log="/var/log/o.log")


def server(**changes: object) -> ServerFacts:
    return SERVER.model_copy(update=changes)


@pytest.mark.parametrize(
    ("environment", "changes", "found"),
    [
        ({"A": "1"}, {"A": "1"}, ()),
        ({"A": "1"}, {"A": "2"}, ("A is 1, not 2 (environment of process 7)",)),
        ({}, {"A": "2"}, ("A is not set, not 2 (environment of process 7)",)),
        ({"A": "1"}, {"A": None}, ("A is 1, not unset (environment of process 7)",)),
        ({"A": ""}, {"A": None}, ()),
        ({}, {"A": None}, ()),
    ],
)
def test_the_processs_own_word(
    environment: dict[str, str], changes: dict[str, str | None], found: tuple[str, ...]
) -> None:
    assert differences(server(environment=environment), changes) == found


@pytest.mark.parametrize(
    ("logged", "changes", "found"),
    [
        ({"OLLAMA_KEEP_ALIVE": "30m0s"}, {"OLLAMA_KEEP_ALIVE": "1800s"}, ()),
        ({"OLLAMA_KEEP_ALIVE": "5m0s"}, {"OLLAMA_KEEP_ALIVE": "1800s"}, 1),
        ({"OLLAMA_FLASH_ATTENTION": "true"}, {"OLLAMA_FLASH_ATTENTION": "1"}, ()),
        ({"OLLAMA_FLASH_ATTENTION": "true"}, {"OLLAMA_FLASH_ATTENTION": "0"}, 1),
        ({"OLLAMA_NUM_PARALLEL": "1"}, {"OLLAMA_NUM_PARALLEL": "4", "LLAMA_ARG_THREADS": "3"}, 1),
        ({}, {"LLAMA_ARG_THREADS": "3"}, ()),
        (None, {"OLLAMA_NUM_PARALLEL": "4"}, ()),
    ],
)
def test_the_log_is_asked_where_the_environment_may_not_be_read(
    logged: dict[str, str] | None, changes: dict[str, str | None], found: object
) -> None:
    told = differences(server(logged_environment=logged), changes)
    assert told == found or len(told) == found
    assert all(why.endswith("(/var/log/o.log)") for why in told)


@pytest.mark.parametrize(("slots", "found"), [("4", 0), ("1", 0), ("2", 1)])
def test_the_engines_command_line_tells_too(slots: str, found: int) -> None:
    """One slot is no difference: Ollama gives some models no more."""
    model = LoadedModelFacts(name="m", argv=("llama-server", "-np", slots, "--port", "1"))
    told = differences(server(loaded=(model,)), {"OLLAMA_NUM_PARALLEL": "4"})
    assert len(told) == found
    assert all(f"-np {slots}" in why for why in told)
