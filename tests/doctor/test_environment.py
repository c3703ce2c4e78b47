"""Whose environment is judged, and where it was read."""

from __future__ import annotations

from typing import Any

import pytest

from velollm.doctor.base import EnvironmentMend, Evidence
from velollm.doctor.environment import judged_environment
from velollm.facts import Facts

SHELL = {"OLLAMA_NUM_PARALLEL": "9"}


def judged(server: dict[str, Any] | None, **more: Any) -> Any:
    return judged_environment(Facts.model_validate({"environment": SHELL, "server": server, **more}))


@pytest.mark.parametrize(
    ("server", "values"),
    [
        (None, {"OLLAMA_NUM_PARALLEL": "9"}),
        ({"engine": "ollama", "reachable": False}, {"OLLAMA_NUM_PARALLEL": "9"}),
        ({"engine": "ollama", "reachable": False, "configured": {"unit": {"OLLAMA_X": "1"}}}, {"OLLAMA_X": "1"}),
        ({"engine": "ollama", "pid": 7, "environment": {"OLLAMA_X": " '1' ", "OLLAMA_Y": ""}}, {"OLLAMA_X": "1"}),
        ({"engine": "ollama", "pid": 7, "configured": {"unit": {"OLLAMA_X": "1"}}}, {"OLLAMA_X": "1"}),
        (
            {"engine": "ollama", "pid": 7, "logged_environment": {"OLLAMA_X": "2", "OLLAMA_Y": "false"}},
            {"OLLAMA_X": "2"},
        ),
        (
            {
                "pid": 7,
                "logged_environment": {"OLLAMA_X": "2"},
                "configured": {"a": {"OLLAMA_X": "1", "LLAMA_ARG_Z": "3"}},
            },
            {"OLLAMA_X": "2", "LLAMA_ARG_Z": "3"},
        ),
    ],
)
def test_whose_it_is(server: dict[str, Any] | None, values: dict[str, str]) -> None:
    env = judged(server)
    assert dict(env.values) == values


@pytest.mark.parametrize("server", [{"pid": 7}, {"reachable": True}, {"remote": True, "reachable": True}])
def test_what_cannot_be_read_is_unknown(server: dict[str, Any]) -> None:
    assert judged(server) is None


def test_no_server_and_no_environment() -> None:
    assert judged_environment(Facts()) is None


def test_llama_cpp_trims_nothing_and_takes_an_empty_value() -> None:
    env = judged({"pid": 7, "environment": {"LLAMA_ARG_THREADS": '"4"', "LLAMA_ARG_BATCH": "", "OLLAMA_X": '"4"'}})
    assert dict(env.values) == {"LLAMA_ARG_THREADS": '"4"', "LLAMA_ARG_BATCH": "", "OLLAMA_X": "4"}


def test_a_key_is_not_shown() -> None:
    env = judged(
        {"pid": 7, "environment": {"LLAMA_API_KEY": "s3cret"}}, sources={"server.environment": "/proc/7/environ"}
    )
    assert env.seen("LLAMA_API_KEY") == (Evidence("/proc/7/environ", "LLAMA_API_KEY=(set)"),)
    assert env.seen("OLLAMA_X")[0].value == "OLLAMA_X=not set"


def test_only_a_servers_environment_can_be_mended() -> None:
    shell = judged(None)
    assert shell.mend(OLLAMA_NUM_PARALLEL=None) is None
    assert (shell.set("A", 1), shell.unset("A")) == ("export A=1", "unset A")
    service = judged({"pid": 7, "unit": "ollama.service", "environment": {}})
    assert service.mend(A=None, B=2) == EnvironmentMend({"A": None, "B": "2"})
    assert service.set("A", 1).startswith("sudo systemctl edit ollama.service")
