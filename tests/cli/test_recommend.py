"""`velollm recommend` as a program: one document, 80 columns, and a model got after a yes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fake_ollama import FakeOllama, fake_ollama
from tests.program import document, one_error, run_cli
from tests.shared import shared_dir
from velollm.cli import run_app
from velollm.config import user_paths
from velollm.probe.machine import probe_machine
from velollm.probe.speedtest import MachineSpeed, machine_key


@pytest.fixture
def described(tmp_path: Path) -> Path:
    path = tmp_path / "machine.yaml"
    path.write_text("16 GB RAM, RTX 4070 12 GB\nlinux\n", encoding="utf-8")
    return path


def keep_speed() -> None:
    """This machine's speed as if it had been measured before."""
    directory = user_paths().data
    directory.mkdir(parents=True, exist_ok=True)
    speed = MachineSpeed(
        machine=machine_key(probe_machine(sample_s=0)),
        threads=2,
        block_bytes=1,
        read_bytes_per_s=30 * 10**9,
        multiply_flops=3 * 10**11,
        taken_at="2026-11-25T12:00:00+00:00",
        elapsed_s=1.0,
    )
    (directory / "machine-speed.json").write_text(speed.model_dump_json(), encoding="utf-8")


def test_one_model_on_a_described_machine(described: Path) -> None:
    done = run_cli("recommend", "llama3.1:8b", "--hardware", described, "--json")
    assert done.returncode == 0, done.stderr
    found = document(done)
    best = found["best"]
    assert (best["format"], best["where"]) == ("q8_0", "gpu")
    assert best["decode_tokens_per_s"]["evidence"] == "table"
    assert best["decode_tokens_per_s"]["low"] < best["decode_tokens_per_s"]["value"]
    assert best["memory"]["evidence"] == "arithmetic"
    assert found["get"]["command"] == "ollama pull llama3.1:8b-instruct-q8_0"
    assert found["done"] is False


def test_the_terminal_has_80_columns_and_no_colours(described: Path) -> None:
    done = run_cli("recommend", "--hardware", described, "--profile", "code", environ={"NO_COLOR": "1"})
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines if not line.startswith("To get it"))
    assert lines[-1].startswith("To get it")
    assert "ollama pull" in lines[-1]
    assert "[table]" in done.stdout


def test_nothing_that_suits_is_an_answer(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text("1 GB RAM, 5 GB/s", encoding="utf-8")
    done = run_cli("recommend", "llama3.1:70b", "--hardware", path)
    assert done.returncode == 0
    assert done.stdout.startswith("Nothing suits this machine")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("no-such-model",), "no model 'no-such-model'"),
        (("lama3.1:8b",), "no model 'lama3.1:8b'"),
        (("--yes",), "--yes gets a model for this machine"),
        (("--profile", "none"), "no profile 'none'"),
    ],
)
def test_wrong_requests(described: Path, arguments: tuple[str, ...], message: str) -> None:
    error, _ = one_error(run_cli("recommend", *arguments, "--hardware", described))
    assert message in error


def test_a_wrong_hardware_file(tmp_path: Path) -> None:
    error, hint = one_error(run_cli("recommend", "--hardware", tmp_path / "absent.yaml"))
    assert "cannot read the hardware file" in error
    assert "16 GB RAM" in hint


def offline(fake: FakeOllama) -> dict[str, str]:
    """The way to a fake, and none to the library's registry."""
    return {"OLLAMA_HOST": fake.url, "HTTPS_PROXY": "http://127.0.0.1:1", "NO_PROXY": "127.0.0.1"}


def test_pulling_without_network_fails_cleanly() -> None:
    keep_speed()
    with fake_ollama() as fake:
        done = run_cli("recommend", "smollm2:135m@f16", "--yes", environ=offline(fake))
        assert done.returncode == 1
        errors = [line for line in done.stderr.splitlines() if line.startswith("Error:")]
        assert len(errors) == 1
        assert "cannot reach its library" in errors[0]
        assert "Traceback" not in done.stderr


def test_a_recommended_model_is_pulled_after_a_yes() -> None:
    keep_speed()
    with fake_ollama() as fake:
        fake.library.add("smollm2:135m")
        done = run_cli("recommend", "smollm2:135m@f16", "--yes", "--json", environ=offline(fake))
        assert done.returncode == 0, done.stderr
        assert document(done)["done"] is True
        assert fake.bodies("/api/pull") == [{"model": "smollm2:135m"}]
        again = run_cli("recommend", "smollm2:135m@f16", environ=offline(fake))
        assert "It is installed" in again.stdout
        assert len(fake.bodies("/api/pull")) == 1


def test_without_a_yes_nothing_is_pulled() -> None:
    shared_dir("ollama")
    keep_speed()
    with fake_ollama() as fake:
        fake.library.add("smollm2:135m")
        done = run_cli("recommend", "smollm2:135m@f16", environ=offline(fake))
        assert done.returncode == 0, done.stderr
        assert fake.bodies("/api/pull") == []
        assert "measured here on 2026-11-25" in done.stdout


def test_what_the_library_has_no_more_gives_the_next_best(
    fake: FakeOllama, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keep_speed()
    monkeypatch.setenv("OLLAMA_HOST", fake.url)
    fake.library.update({"smollm2:135m", "smollm2:135m-instruct-q8_0"})
    asked: list[str] = []

    def is_in_library(name: str) -> bool:
        asked.append(name)
        return len(asked) > 1

    monkeypatch.setattr("velollm.recommend.finder.is_in_library", is_in_library)
    assert run_app(["recommend", "smollm2:135m", "--yes"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert len(asked) == 2
    assert f"The Ollama library has no {asked[0]}. Next best, {asked[1]}. To get it (" in told
    assert told.endswith(f"{asked[1]} is there: ollama run {asked[1]}")
    assert fake.bodies("/api/pull") == [{"model": asked[1]}]
    monkeypatch.setattr("velollm.recommend.finder.is_in_library", lambda _: False)
    assert run_app(["recommend", "tinyllama:1.1b", "--yes", "--json"]) == 1
    assert "the Ollama library has none of the recommended models" in capsys.readouterr().err
    assert len(fake.bodies("/api/pull")) == 1
