from __future__ import annotations

import plistlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.targets.outside import Programs, ground, system
from velollm.errors import VeloError
from velollm.facts import ServerFacts
from velollm.targets.base import ABSENT, State
from velollm.targets.environment import choose_place
from velollm.targets.launchd import LaunchdPlace, LaunchdVariableTarget, parse_agent, parse_list, render_agent
from velollm.targets.system import System

APP = ServerFacts(managed="app", binary="/Applications/Ollama.app/Contents/Resources/ollama")
# As `launchctl list` prints it on macOS 14.
LISTED = "PID\tStatus\tLabel\n-\t0\tcom.apple.SafariHistoryServiceAgent\n812\t0\thomebrew.mxcl.ollama\n501\t-9\tcom.x\n"


def mac(root: Path, answers: dict[str, str] | None = None) -> tuple[System, Programs]:
    programs = Programs(answers)
    return system(root, programs, platform="darwin"), programs


@given(st.dictionaries(st.from_regex(r"[A-Z_]{1,8}", fullmatch=True), st.text("ab $\"'<&\\é", max_size=8), max_size=3))
def test_an_agent_holds_its_variables(environment: dict[str, str]) -> None:
    content = render_agent(environment)
    assert parse_agent(content) == environment
    body = plistlib.loads(content)
    assert body["RunAtLoad"] is True
    # The shell takes the values from its environment, so none of them has to be quoted.
    assert body["ProgramArguments"][:2] == ["/bin/sh", "-c"]
    script = "; ".join(f'launchctl setenv {name} "${name}"' for name in environment)
    assert body["ProgramArguments"][2] == script


@given(st.binary(max_size=60))
def test_no_content_breaks_the_agents_parser(content: bytes) -> None:
    assert isinstance(parse_agent(content), dict)


def test_jobs_by_process() -> None:
    assert parse_list(LISTED) == {812: "homebrew.mxcl.ollama", 501: "com.x"}


def test_a_variable_of_the_session(tmp_path: Path) -> None:
    machine, programs = mac(
        tmp_path, {"launchctl getenv A": "a b\n", "launchctl setenv A x": "", "launchctl unsetenv A": ""}
    )
    target = LaunchdVariableTarget("A", machine)
    assert target.read() == State(b"a b")
    assert LaunchdVariableTarget("B", machine).read() == ABSENT
    target.write(State(b"x"))
    target.write(ABSENT)
    assert programs.asked[-2:] == ["launchctl setenv A x", "launchctl unsetenv A"]
    with pytest.raises(VeloError, match="refused"):
        target.write(State(b"other"))


def test_the_app_gets_session_variables_and_an_agent(tmp_path: Path) -> None:
    machine, _ = mac(tmp_path, {"launchctl getenv OLLAMA_KEEP_ALIVE": "1h\n"})
    place = choose_place(ground(tmp_path, APP, machine))
    assert isinstance(place, LaunchdPlace)
    assert place.read() == {"OLLAMA_KEEP_ALIVE": "1h"}
    assert place.ours() == {}
    writes = place.writes({"OLLAMA_NUM_PARALLEL": "2", "OLLAMA_KEEP_ALIVE": None, "OLLAMA_MAX_QUEUE": None})
    assert [(target.label, after.content) for target, _, after in writes[:-1]] == [
        ("launchd variable OLLAMA_NUM_PARALLEL", b"2"),
        ("launchd variable OLLAMA_KEEP_ALIVE", None),
    ]
    agent, _, after = writes[-1]
    assert agent.label == str(tmp_path / "home/Library/LaunchAgents/com.velollm.environment.plist")
    assert parse_agent(after.content or b"") == {"OLLAMA_NUM_PARALLEL": "2"}
    agent.write(after)
    assert place.ours() == {"OLLAMA_NUM_PARALLEL": "2"}
    assert place.activation.commands() == ("osascript -e 'quit app \"Ollama\"'", "open -a Ollama")
    assert place.by_hand({"A": "x y", "B": None})[:2] == ("launchctl setenv A 'x y'", "launchctl unsetenv B")


def test_what_the_app_decides_itself_is_refused(tmp_path: Path) -> None:
    place = choose_place(ground(tmp_path, APP, mac(tmp_path)[0]))
    with pytest.raises(VeloError, match="OLLAMA_CONTEXT_LENGTH is decided by the settings of the Ollama app"):
        place.writes({"OLLAMA_CONTEXT_LENGTH": "8192"})


def test_what_the_session_does_not_set_cannot_be_taken_from_it(tmp_path: Path) -> None:
    app = APP.model_copy(update={"environment": {"LLAMA_ARG_THREADS": "many", "OLLAMA_KEEP_ALIVE": "1h"}})
    machine, _ = mac(tmp_path, {"launchctl getenv OLLAMA_KEEP_ALIVE": "1h\n"})
    place = choose_place(ground(tmp_path, app, machine))
    with pytest.raises(VeloError, match="LLAMA_ARG_THREADS: not set in the launchd session"):
        place.writes({"LLAMA_ARG_THREADS": None})
    ((target, _, after),) = place.writes({"OLLAMA_KEEP_ALIVE": None})
    assert (target.label, after) == ("launchd variable OLLAMA_KEEP_ALIVE", ABSENT)


def test_homebrews_job_is_restarted_and_its_own_variables_win(tmp_path: Path) -> None:
    machine, _ = mac(tmp_path, {"launchctl list": LISTED})
    place = choose_place(ground(tmp_path, ServerFacts(managed="launchd"), machine, 812))
    (command,) = place.activation.commands()
    assert command.startswith("launchctl kickstart -k ")
    assert command.endswith("/homebrew.mxcl.ollama")
    own = tmp_path / "home/Library/LaunchAgents/homebrew.mxcl.ollama.plist"
    own.parent.mkdir(parents=True)
    own.write_bytes(plistlib.dumps({"EnvironmentVariables": {"OLLAMA_KV_CACHE_TYPE": "q8_0"}}))
    with pytest.raises(VeloError, match=r"homebrew\.mxcl\.ollama\.plist"):
        place.writes({"OLLAMA_KV_CACHE_TYPE": "f16"})


def test_a_job_of_another_session_is_left_to_a_person(tmp_path: Path) -> None:
    place = choose_place(ground(tmp_path, ServerFacts(managed="launchd"), mac(tmp_path)[0], 9))
    assert place.refusal() == "the server's launchd job is not one of this user's session"
    assert "kickstart" in place.by_hand({"A": "1"})[-1]
