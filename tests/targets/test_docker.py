"""Servers in containers: what Docker prints of them, the Compose override, and the commands of a plain one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.targets.outside import Programs, ground, system
from velollm.errors import VeloError
from velollm.facts import ServerFacts
from velollm.targets.docker import parse_inspect
from velollm.targets.docker_compose import ComposePlace
from velollm.targets.docker_run import DockerRunPlace
from velollm.targets.environment import EnvironmentPlace, choose_place
from velollm.targets.run_environment import RunPlace

ID = "4f1d2c3b" * 8
CGROUP = f"0::/system.slice/docker-{ID}.scope\n"
INSIDE = ServerFacts(managed="container", reachable=True, remote=False, pid=77, url="http://127.0.0.1:11434")
UNSEEN = ServerFacts(reachable=True, remote=False, url="http://127.0.0.1:11434")
PS = "docker ps --no-trunc --filter publish=11434 --format {{.ID}}"
IMAGE_ENV = ["PATH=/usr/bin", "OLLAMA_HOST=0.0.0.0:11434", "NVIDIA_VISIBLE_DEVICES=all"]
IMAGE = "docker image inspect -f {{json .Config.Env}} ollama/ollama:0.33.0"


def inspected(**labels: str) -> str:
    """What `docker inspect` prints (Docker 28), cut to what matters."""
    container: dict[str, Any] = {
        "Id": ID,
        "Name": "/ollama",
        "Config": {
            "Image": "ollama/ollama:0.33.0",
            "Env": [*IMAGE_ENV, "OLLAMA_KEEP_ALIVE=1h", "NOTE=a b"],
            "Cmd": ["serve"],
            "Labels": {f"com.docker.compose.{name.replace('__', '.')}": value for name, value in labels.items()},
        },
        "HostConfig": {
            "RestartPolicy": {"Name": "unless-stopped", "MaximumRetryCount": 0},
            "PortBindings": {"11434/tcp": [{"HostIp": "127.0.0.1", "HostPort": "11434"}]},
            "NetworkMode": "bridge",
            "IpcMode": "private",
            "Runtime": "runc",
            "Privileged": False,
            "Memory": 8589934592,
            "Devices": [{"PathOnHost": "/dev/kfd", "PathInContainer": "/dev/kfd", "CgroupPermissions": "rwm"}],
            "DeviceRequests": [{"Driver": "", "Count": -1, "DeviceIDs": None, "Capabilities": [["gpu"]]}],
            "GroupAdd": ["video"],
        },
        "Mounts": [{"Type": "volume", "Name": "ollama", "Source": "/v", "Destination": "/root/.ollama", "RW": True}],
    }
    return json.dumps([container])


def place_of(root: Path, server: ServerFacts = INSIDE, answers: dict[str, str] | None = None) -> EnvironmentPlace:
    (root / "proc" / "77").mkdir(parents=True, exist_ok=True)
    (root / "proc" / "77" / "cgroup").write_text(CGROUP)
    known = {"docker compose version": "Docker Compose version v2.36.2\n", IMAGE: json.dumps(IMAGE_ENV)}
    programs = Programs({**known, **(answers or {})})
    return choose_place(ground(root, server, system(root, programs)))


def compose_place(root: Path, main: str = "docker-compose.yml", server: ServerFacts = INSIDE) -> ComposePlace:
    project = root / "project"
    project.mkdir(exist_ok=True)
    labels = {"service": "llm", "project": "home", "project__working_dir": str(project)}
    labels["project__config_files"] = str(project / main)
    answers = {f"docker inspect {ID}": inspected(**labels), PS: f"{ID}\n"}
    place = place_of(root, server, answers)
    assert isinstance(place, ComposePlace)
    return place


def test_the_override_beside_the_projects_own_file(tmp_path: Path) -> None:
    place = compose_place(tmp_path)
    assert place.label == str(tmp_path / "project" / "docker-compose.override.yml")
    assert place.refusal() is None
    assert place.read() == {}
    ((target, before, after),) = place.writes({"OLLAMA_NUM_PARALLEL": "4"})
    assert before.content is None
    assert yaml.safe_load(after.text) == {"services": {"llm": {"environment": {"OLLAMA_NUM_PARALLEL": "4"}}}}
    target.write(after)
    assert place.read() == {"OLLAMA_NUM_PARALLEL": "4"}
    assert not place.owned
    command = f"docker compose --project-directory {tmp_path}/project --project-name home up -d llm"
    assert place.activation.commands() == (command,)
    assert place.activation.lacking() is None


@pytest.mark.parametrize("name", ["compose.override.yml", "docker-compose.override.yaml"])
def test_the_override_that_compose_reads_is_the_one(tmp_path: Path, name: str) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / name).write_text("# mine\nservices:\n  llm:\n    image: x\n")
    place = compose_place(tmp_path)
    assert place.label.endswith(name)
    ((_, _, after),) = place.writes({"A": "1"})
    assert after.text.startswith("# mine\nservices:\n  llm:\n")
    assert "    image: x\n" in after.text


def test_a_container_that_only_its_port_tells(tmp_path: Path) -> None:
    assert compose_place(tmp_path, server=UNSEEN).refusal() is None


def test_a_project_of_other_files_is_left_to_a_person(tmp_path: Path) -> None:
    place = compose_place(tmp_path, "gpu.yml")
    assert place.refusal() == (
        f"the project was started from {tmp_path}/project/gpu.yml, so Compose reads no override file by itself"
    )
    override = tmp_path / "project" / "compose.override.yaml"
    assert place.by_hand({"A": "1"}) == (
        f"# into {override}:",
        "services:",
        "  llm:",
        "    environment:",
        '      A: "1"',
        f"docker compose -f {tmp_path}/project/gpu.yml -f {override} up -d llm",
    )


def test_an_override_that_cannot_be_changed_is_named(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "compose.override.yaml").write_text("- no\n")
    place = compose_place(tmp_path)
    with pytest.raises(VeloError, match=r"compose\.override\.yaml: "):
        place.writes({"A": "1"})


def test_what_the_project_itself_sets_cannot_be_taken_away_by_an_override(tmp_path: Path) -> None:
    place = compose_place(tmp_path)
    with pytest.raises(VeloError, match=r"OLLAMA_KEEP_ALIVE: not set in the override file .*override\.yml"):
        place.writes({"A": "1", "OLLAMA_KEEP_ALIVE": None})
    assert place.writes({"GONE": None}) == []
    (tmp_path / "project" / "docker-compose.override.yml").write_text(
        "services:\n  llm:\n    environment:\n      OLLAMA_KEEP_ALIVE: 1h\n      B: x\n"
    )
    ((_, _, after),) = place.writes({"OLLAMA_KEEP_ALIVE": None})
    assert after.text == "services:\n  llm:\n    environment:\n      B: x\n"


def test_a_plain_container_is_never_made_anew_by_us(tmp_path: Path) -> None:
    place = place_of(tmp_path, answers={f"docker inspect {ID}": inspected()})
    assert isinstance(place, DockerRunPlace)
    assert place.label == "container ollama"
    assert "VeloLLM makes none anew" in (place.refusal() or "")
    assert place.activation.lacking() == place.refusal()
    assert place.read() == {"OLLAMA_KEEP_ALIVE": "1h", "NOTE": "a b"}
    with pytest.raises(VeloError):
        place.writes({"A": "1"})
    assert place.by_hand({"OLLAMA_NUM_PARALLEL": "4", "OLLAMA_KEEP_ALIVE": None}) == (
        "docker stop ollama",
        "docker rename ollama ollama-before-velollm",
        (
            "docker run -d --name ollama --restart unless-stopped -p 127.0.0.1:11434:11434 -v ollama:/root/.ollama "
            "--device /dev/kfd:/dev/kfd --gpus all --group-add video -e 'NOTE=a b' -e OLLAMA_NUM_PARALLEL=4 "
            "ollama/ollama:0.33.0 serve  # also as before: Memory"
        ),
    )


def test_a_container_that_docker_does_not_tell_of(tmp_path: Path) -> None:
    place = place_of(tmp_path)
    assert isinstance(place, DockerRunPlace)
    assert place.read() == {}
    assert place.by_hand({"A": "1"}) == ("make the container anew: docker run -e A=1 …",)


def test_a_server_that_nobody_keeps_is_for_velollm_run(tmp_path: Path) -> None:
    for server in (UNSEEN, ServerFacts(managed="by hand"), ServerFacts(managed="velollm run"), None):
        root = tmp_path / str(server and server.managed)
        assert isinstance(place_of(root, server or ServerFacts()), RunPlace)


def test_a_server_of_a_terminal_is_started_without_what_is_to_be_gone(tmp_path: Path) -> None:
    place = place_of(tmp_path, ServerFacts(managed="by hand"))
    assert place.by_hand({"A": "x y", "B": None}) == ("env -u B A='x y' ollama serve",)
    assert place.by_hand({"A": "1"}) == ("A=1 ollama serve",)


@pytest.mark.parametrize("text", ["", "null", "[]", "[1]", "{", '[{"Config": 1, "HostConfig": []}]'])
def test_no_output_breaks_the_parser(text: str) -> None:
    found = parse_inspect(text)
    assert found is None or found.environment == {}
