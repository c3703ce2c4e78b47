"""`velollm doctor`: its options, exit codes, and what --fix and --probe show."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_commands import make_capture
from tests.crash import snapshot
from tests.fake_ollama import MODEL, FakeOllama
from tests.program import document, one_error, run_cli
from velollm.cli import run_app
from velollm.config import user_paths
from velollm.doctor.base import Check, EnvironmentMend, Evidence, Finding
from velollm.doctor.diagnose import choose_checks, compare_findings, load_checks
from velollm.errors import UsageError
from velollm.facts import Facts, ServerFacts

MEMORY = "MemTotal: 16384000 kB\nMemAvailable: 300000 kB\nSwapTotal: 8000000 kB\nSwapFree: 10000 kB\n"


@pytest.fixture
def sick(tmp_path: Path) -> Path:
    return make_capture(tmp_path / "machine", proc_meminfo=MEMORY)


# Which checks


def test_one_check_alone(sick: Path) -> None:
    done = run_cli("doctor", "--capture", sick, "--check", "swap", "--json")
    assert done.returncode == 3
    assert {finding["check"] for finding in document(done)["findings"]} == {"swap"}
    two = run_cli("doctor", "--capture", sick, "--check", "swap", "--check", "memory-available", "--json")
    assert {finding["check"] for finding in document(two)["findings"]} == {"swap", "memory-available"}
    assert run_cli("doctor", "--capture", sick, "--check", "battery").returncode == 0


def test_an_unknown_check_names_those_near_it() -> None:
    done = run_cli("doctor", "--check", "swop")
    assert done.returncode == 2
    error, hint = one_error(done)
    assert error == "Error: there is no check 'swop'"
    assert "swap" in hint
    with pytest.raises(UsageError) as caught:
        choose_checks(["zzz"])
    assert "--list" in caught.value.hint
    assert choose_checks([]) == load_checks()


# Quiet


def test_quiet_says_nothing_and_tells_by_its_exit_code(sick: Path, tmp_path: Path) -> None:
    done = run_cli("doctor", "--capture", sick, "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")
    healthy = run_cli("doctor", "--capture", make_capture(tmp_path / "healthy"), "-q")
    assert (healthy.returncode, healthy.stdout, healthy.stderr) == (0, "", "")
    failed = run_cli("doctor", "--capture", tmp_path / "absent", "-q")
    assert failed.returncode == 1
    assert one_error(failed)


@pytest.mark.parametrize(
    "options",
    [
        ("--quiet", "--json"),
        ("--quiet", "--list"),
        ("--capture", "x", "--fix"),
        ("--capture", "x", "--probe"),
        ("--list", "--fix"),
    ],
)
def test_options_that_contradict_each_other(options: tuple[str, ...]) -> None:
    done = run_cli("doctor", *options)
    assert done.returncode == 2
    assert one_error(done)


# Report


def test_a_report_is_written_and_nothing_else(sick: Path, tmp_path: Path) -> None:
    before = snapshot(sick)
    file = tmp_path / "report.md"
    done = run_cli("doctor", "--capture", sick, "--report", file, "--json")
    assert done.returncode == 3
    assert len(document(done)["findings"]) == file.read_text().count("\n- **")
    assert f"Wrote {file}" in done.stderr
    assert snapshot(sick) == before
    quiet = run_cli("doctor", "--capture", sick, "--report", file, "--quiet")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (3, "", "")


def test_a_report_that_cannot_be_written(sick: Path, tmp_path: Path) -> None:
    done = run_cli("doctor", "--capture", sick, "--report", tmp_path / "no" / "report.md", "--quiet")
    assert done.returncode == 1
    assert "cannot write" in one_error(done)[0]


# Fix


SICK = Facts(server=ServerFacts(engine="ollama", reachable=True, managed="velollm run", keep_alive_s=5))


def _short(facts: Facts) -> Iterator[Finding]:
    """Finds short stays."""
    server = facts.server
    if server is not None and server.keep_alive_s is not None and server.keep_alive_s < 60:
        seen = (Evidence("environment", f"{server.keep_alive_s} s"),)
        mending = EnvironmentMend({"OLLAMA_KEEP_ALIVE": "30m"})
        yield Finding("short", "warning", f"models leave after {server.keep_alive_s} s", seen, "do", "waits", mending)


class Doctor:
    """A doctor with one check, whose machine is sick until its environment file says otherwise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.mends = True
        self.restarts = 0
        self.asked: list[str] = []
        self.answer = True
        check = Check("short", "Short stays", "warning", True, _short)
        monkeypatch.setattr("velollm.doctor.diagnose.choose_checks", lambda names: (check,))
        monkeypatch.setattr("velollm.probe.machine.probe_machine", self.probe)
        self.there = True
        monkeypatch.setattr("velollm.targets.activation.find_runner", lambda *_: self if self.there else None)
        for room in ("velollm.targets.activation", "velollm.autopilot.landing"):
            monkeypatch.setattr(f"{room}.reach_runner", lambda _: self)
        monkeypatch.setattr("velollm.targets.run_environment.read_runner_environ", lambda _: {})
        monkeypatch.setattr("velollm.autopilot.restart.wait_until_up", lambda *_: None)
        monkeypatch.setattr("velollm.cli.doctor.is_interactive", lambda: True)
        monkeypatch.setattr("velollm.cli.doctor.ask", self.ask)
        monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")

    def probe(self) -> Facts:
        file = user_paths().ollama_env
        healthy = self.mends and file.exists() and "30m" in file.read_text()
        return replace_server(SICK, keep_alive_s=1800 if healthy else 5)

    def restart(self) -> None:
        self.restarts += 1

    def ask(self, question: str) -> bool:
        self.asked.append(question)
        return self.answer


def replace_server(facts: Facts, **values: object) -> Facts:
    assert facts.server is not None
    return facts.model_copy(update={"server": facts.server.model_copy(update=values)})


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch) -> Doctor:
    return Doctor(monkeypatch)


Capture = pytest.CaptureFixture[str]


def test_fix_asks_mends_looks_again_and_can_be_undone(doctor: Doctor, capsys: Capture) -> None:
    assert run_app(["doctor", "--fix"]) == 0
    out = capsys.readouterr().out
    assert "or: velollm doctor --fix" in out
    assert "gone     models leave after 5 s" in out
    assert "still" not in out
    assert len(doctor.asked) == 1
    assert "cuts running answers" in doctor.asked[0]
    assert doctor.restarts == 1
    assert user_paths().ollama_env.read_text() == "OLLAMA_KEEP_ALIVE=30m\n"
    assert run_app(["undo"]) == 0
    assert not user_paths().ollama_env.exists()


def test_a_no_leaves_everything_as_it_is(doctor: Doctor, capsys: Capture) -> None:
    doctor.answer = False
    assert run_app(["doctor", "--fix"]) == 3
    assert "nobody said yes" in capsys.readouterr().out
    assert not user_paths().ollama_env.exists()
    assert doctor.restarts == 0


def test_in_a_pipe_nobody_is_asked(doctor: Doctor, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("velollm.cli.doctor.is_interactive", lambda: False)
    assert run_app(["doctor", "--fix", "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert "mended" not in told
    assert told["findings"][0]["mendable"] is True
    assert doctor.asked == []
    assert not user_paths().ollama_env.exists()


def test_what_is_still_there_is_said(doctor: Doctor, capsys: Capture) -> None:
    doctor.mends = False
    assert run_app(["doctor", "--fix", "--yes"]) == 3
    assert "still    models leave after 5 s" in capsys.readouterr().out
    assert doctor.asked == []


def test_the_document_tells_what_is_gone(doctor: Doctor, capsys: Capture) -> None:
    assert run_app(["doctor", "--fix", "--yes", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["findings"] == []
    mended = told["mended"]
    assert [finding["check"] for finding in mended["gone"]] == ["short"]
    assert mended["still"] == []
    assert mended["flight"]
    assert mended["restarted"] is True
    assert mended["gone"][0]["mend"] == {"variables": {"OLLAMA_KEEP_ALIVE": "30m"}}


def test_nothing_to_mend_by_itself(doctor: Doctor, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    by_hand = replace_server(SICK, managed="by hand")
    doctor.there = False
    monkeypatch.setattr("velollm.probe.machine.probe_machine", lambda: by_hand)
    assert run_app(["doctor", "--fix", "--yes"]) == 3
    out = capsys.readouterr().out
    assert "Nothing of this may be mended by --fix." in out
    assert "or: velollm doctor --fix" not in out


def test_findings_are_the_same_when_only_their_numbers_differ() -> None:
    def found(check: str, title: str) -> Finding:
        return Finding(check, "warning", title, (Evidence("a", "b"),), "c")

    before = [found("load", "1.5 cores busy"), found("slots", "9,000 requests"), found("swap", "2 GiB")]
    gone, still = compare_findings(before, [found("load", "0.7 cores busy"), replace(before[1], severity="note")])
    assert [finding.check for finding in gone] == ["swap"]
    assert [finding.check for finding in still] == ["load", "slots"]


# Probe


@pytest.fixture
def serving(fake: FakeOllama, monkeypatch: pytest.MonkeyPatch) -> FakeOllama:
    monkeypatch.setenv("OLLAMA_HOST", fake.url)
    return fake


def cut(found: dict[str, Any]) -> list[str]:
    return [finding["title"] for finding in found["findings"] if finding["check"] == "truncation"]


def test_probe_proves_the_cut_after_a_yes(serving: FakeOllama) -> None:
    done = run_cli("doctor", "--probe", "--yes", "--check", "truncation", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = document(done)
    assert "of 6,011 tokens 258 were left, with status 200" in cut(found)[0]
    assert found["facts"]["server"]["truncation"]["model"] == f"{MODEL}:latest"
    assert serving.loaded == {}


def test_probe_sends_nothing_without_a_yes(serving: FakeOllama) -> None:
    done = run_cli("doctor", "--probe", "--check", "truncation")
    assert done.returncode == 0
    assert "Not probed" in done.stderr
    assert serving.bodies("/api/generate") == []


def test_probe_without_a_server_is_an_error() -> None:
    done = run_cli("doctor", "--probe", "--yes", environ={"OLLAMA_HOST": "127.0.0.1:9"})
    assert done.returncode == 1
    assert "no Ollama server answers" in one_error(done)[0]


def test_the_list_of_some_checks() -> None:
    found = document(run_cli("doctor", "--list", "--check", "swap", "--json"))
    assert [row["name"] for row in found["checks"]] == ["swap"]
