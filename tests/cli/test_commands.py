"""What every command gives: help, one document, exit codes, no colours in pipes, 80 columns."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.crash import snapshot
from tests.program import document, program_environ, run_cli
from velollm import __version__
from velollm.discover import load_modules
from velollm.doctor.diagnose import load_checks
from velollm.knobs import KNOBS
from velollm.models.synthetic import TINY, ensure_model
from velollm.plan import load_rules

COMMANDS = (
    *("bench", "doctor", "draft", "estimate", "explain", "export", "history", "import", "optimize"),
    *("recommend", "run", "status", "synth", "tune", "undo"),
)
HEAVY = {"rich", "pydantic", "httpx", "numpy", "psutil", "yaml", "gguf", "pynvml", "xllamacpp", "platformdirs"}
ESCAPE = "\x1b"

# A healthy machine in the words of its kernel: four cores, memory to spare, no swap in use.
HEALTHY = {
    "proc_meminfo.txt": "MemTotal: 16384000 kB\nMemAvailable: 12000000 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n",
    "proc_cpuinfo.txt": "".join(
        f"processor\t: {n}\nmodel name\t: A Processor\nphysical id\t: 0\ncore id\t: {n}\ncpu cores\t: 4\n"
        "siblings\t: 4\nflags\t: fpu sse2 avx avx2\n\n"
        for n in range(4)
    ),
    "proc_loadavg.txt": "0.05 0.04 0.01 1/200 4000\n",
}


def make_capture(directory: Path, **more: str) -> Path:
    directory.mkdir()
    for name, text in {**HEALTHY, **{f"{key}.txt": value for key, value in more.items()}}.items():
        (directory / name).write_text(text, encoding="utf-8")
    return directory


def test_help_lists_every_command() -> None:
    done = run_cli("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert tuple(re.findall(r"^  ([a-z]+)  ", done.stdout.partition("Commands:")[2], re.MULTILINE)) == COMMANDS
    modules = {m.__name__.rpartition(".")[2].rstrip("_") for m in load_modules("velollm.cli") if hasattr(m, "command")}
    assert modules == set(COMMANDS)


def test_no_arguments_is_the_help() -> None:
    done = run_cli()
    assert (done.returncode, done.stdout, done.stderr) == (0, run_cli("--help").stdout, "")


def imported_by(*arguments: str | Path) -> set[str]:
    """The packages that a command line imports."""
    argv = [sys.executable, "-X", "importtime", "-m", "velollm", *map(str, arguments)]
    done = subprocess.run(argv, env=program_environ(), capture_output=True, text=True, timeout=30, check=True)
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}


@pytest.mark.parametrize("arguments", [("--help",), ("--version",)])
def test_help_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    imported = imported_by(*arguments)
    assert "velollm" in imported
    assert imported & HEAVY == set()


def test_an_estimate_imports_what_it_needs(tmp_path: Path) -> None:
    """Its answer is to be there in a moment: schemas, tables of the catalog and drawn text take longer than it."""
    model = ensure_model(TINY, tmp_path)
    assert imported_by("estimate", model, "--json") & HEAVY == set()
    assert imported_by("estimate", model) & HEAVY == {"rich"}


def test_version() -> None:
    done = run_cli("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"velollm {__version__}\n", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example(command: str) -> None:
    done = run_cli(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Example: velollm {command}" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


# doctor


def test_doctor_lists_its_checks() -> None:
    done = run_cli("doctor", "--list", "--json")
    assert done.returncode == 0
    found = document(done)
    assert set(found) == {"schema_version", "checks"}
    assert [row["name"] for row in found["checks"]] == [check.name for check in load_checks()]
    for row in found["checks"]:
        assert set(row) == {"name", "severity", "title", "fixable"}
        assert row["severity"] in ("critical", "warning", "note")
        assert isinstance(row["fixable"], bool)
        assert row["title"]
    text = run_cli("doctor", "--list")
    assert all(row["name"] in text.stdout for row in found["checks"])


def check_doctor(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    found = document(done)
    assert set(found) == {"schema_version", "facts", "findings"}
    for finding in found["findings"]:
        assert set(finding) == {"check", "severity", "title", "evidence", "fix", "why", "mend", "mendable"}
        assert finding["evidence"]
        assert {frozenset(item) for item in finding["evidence"]} == {frozenset({"where", "value"})}
    serious = [finding for finding in found["findings"] if finding["severity"] != "note"]
    assert done.returncode == (3 if serious else 0)
    return found


def test_doctor_on_this_machine() -> None:
    found = check_doctor(run_cli("doctor", "--json"))
    facts = found["facts"]
    assert isinstance(facts, dict)
    assert facts["cpu"]["logical_cores"] == os.cpu_count()
    assert facts["memory"]["total_bytes"] > 0
    assert facts["load"]["busy_cores_now"] >= 0


def test_doctor_on_a_healthy_captured_machine(tmp_path: Path) -> None:
    capture = make_capture(tmp_path / "machine")
    before = snapshot(tmp_path)
    done = run_cli("doctor", "--capture", capture, "--json")
    found = check_doctor(done)
    assert done.returncode == 0
    facts = found["facts"]
    assert isinstance(facts, dict)
    assert facts["memory"]["total_bytes"] == 16384000 * 1024
    assert facts["cpu"]["physical_cores"] == 4
    # What the capture does not say is unknown, also where this machine could answer.
    assert facts["gpus"] is None
    assert facts["environment"] is None
    assert "Nothing is wrong" in run_cli("doctor", "--capture", capture).stdout
    assert snapshot(tmp_path) == before


def test_doctor_on_a_sick_captured_machine(tmp_path: Path) -> None:
    memory = "MemTotal: 16384000 kB\nMemAvailable: 300000 kB\nSwapTotal: 8000000 kB\nSwapFree: 10000 kB\n"
    capture = make_capture(tmp_path / "machine", proc_meminfo=memory)
    done = run_cli("doctor", "--capture", capture, "--json")
    assert done.returncode == 3
    check_doctor(done)
    text = run_cli("doctor", "--capture", capture)
    assert text.returncode == 3
    assert "Most worth mending:" in text.stdout
    assert "mend:" in text.stdout


# explain


@pytest.mark.parametrize("name", KNOBS)
def test_explain(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    from velollm.cli import run_app

    assert run_app(["explain", name, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["schema_version"], found["knob"], found["unit"]) == (1, name, KNOBS[name].unit)
    assert name in next(rule.sets for rule in load_rules() if rule.id == found["rule"])
    assert found["rule_doc"]
    assert run_app(["explain", name]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert KNOBS[name].summary in text
    assert KNOBS[name].explain in text
    assert ("It can change answers" in text) == KNOBS[name].changes_answer


def test_explain_takes_the_name_of_a_rule() -> None:
    assert document(run_cli("explain", "fit-memory", "--json"))["rule"] == "fit-memory"


# Output


@pytest.mark.parametrize(
    "arguments", [("history",), ("undo",), ("doctor", "--list"), ("explain", "threads")], ids=lambda value: value[0]
)
def test_one_document_and_nothing_else(arguments: tuple[str, ...]) -> None:
    done = run_cli(*arguments, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    document(done)


def test_nothing_to_undo_and_no_flights_are_no_errors() -> None:
    assert run_cli("undo").stdout == "Nothing to undo.\n"
    assert document(run_cli("undo", "--json"))["flight"] is None
    assert "No flights yet" in run_cli("history").stdout
    assert document(run_cli("history", "--json"))["flights"] == []


def test_a_plan_for_another_machine(tmp_path: Path) -> None:
    machine = tmp_path / "machine.yaml"
    machine.write_text("- 32 GB RAM, RTX 4070 12 GB\n", encoding="utf-8")
    arguments = ("optimize", "llama3.3:70b@q4_K_M", "--hardware", machine)
    refused = run_cli(*arguments)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "--dry-run" in refused.stderr
    done = run_cli(*arguments, "--dry-run", "--json")
    found = document(done)
    assert done.returncode == 3
    assert found["placement"] is None
    assert all(set(item) >= {"text", "knobs", "changes_answer"} for item in found["nearest"])
    shown = run_cli(*arguments, "--dry-run").stdout
    assert "does not fit" in shown
    assert found["nearest"][0]["quantization"] in shown
    assert "not for this one" in shown


def test_a_model_that_nothing_would_make_fit_is_said_to_be_one(tmp_path: Path) -> None:
    machine = tmp_path / "machine.yaml"
    machine.write_text("16 GB RAM, RTX 4070 12 GB\n", encoding="utf-8")
    done = run_cli("optimize", "llama3.1:70b", "--dry-run", "--hardware", machine)
    text = " ".join(done.stdout.split())
    assert "The model does not fit: " in text
    assert "`velollm recommend` names models that do" in text


SHOWN = [
    ("doctor",),
    ("doctor", "--list"),
    ("optimize", "--backend", "embedded", "--dry-run"),
    ("explain", "context_tokens"),
    ("history",),
]


@pytest.mark.parametrize("arguments", SHOWN, ids=" ".join)
def test_pipes_get_plain_text_in_80_columns(arguments: tuple[str, ...]) -> None:
    done = run_cli(*arguments)
    assert done.stdout
    assert ESCAPE not in done.stdout + done.stderr
    long = [line for line in done.stdout.splitlines() if len(line.rstrip()) > 80 and "/" not in line]
    assert long == []


def on_a_terminal(*arguments: str, **environ: str) -> str:
    """What a command writes when its standard output is a terminal."""
    pty = pytest.importorskip("pty", reason="there are no such terminals here")
    master, slave = pty.openpty()
    read: list[bytes] = []

    def drain() -> None:
        # Linux says that the last writer is gone by an error, others by the end of the file.
        try:
            while piece := os.read(master, 65536):
                read.append(piece)
        except OSError:
            pass

    reader = threading.Thread(target=drain)
    reader.start()
    env = {**program_environ(environ), "TERM": "xterm-256color"}
    env = {name: value for name, value in env.items() if value}
    try:
        argv = [sys.executable, "-m", "velollm", *arguments]
        subprocess.run(argv, env=env, stdin=subprocess.DEVNULL, stdout=slave, stderr=slave, timeout=30, check=True)
    finally:
        os.close(slave)
        reader.join(30)
        os.close(master)
    return b"".join(read).decode()


def test_no_color_is_respected_on_a_terminal() -> None:
    assert ESCAPE in on_a_terminal("explain", "threads", NO_COLOR="")
    assert ESCAPE not in on_a_terminal("explain", "threads", NO_COLOR="1")
