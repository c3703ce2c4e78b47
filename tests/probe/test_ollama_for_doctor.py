"""What the doctor needs of a server: its disk, its models, and the log that `velollm run` passes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.probe.test_ollama import API, BLOB, machine, process
from velollm.config import user_paths
from velollm.facts import EngineFacts, FailedLoad, InstalledModelFacts, OptionReload, ServerActivity
from velollm.probe.ollama import probe_ollama, tuning_environment
from velollm.probe.ollama_activity import name_models
from velollm.probe.source import TextSource

HEAD = "time=2026-01-02T12:00:00.1Z level=INFO source=x.go:1"
START = f'{HEAD} msg="starting llama-server" cmd="llama-server --model {BLOB} -c'
STARTED = f'{HEAD} msg="llama-server started in 0.50 seconds"'


def test_the_disk_of_the_models(tmp_path: Path) -> None:
    mounts = "/dev/sda2 / ext4 rw 0 0\nnas:/llm /usr/share/ollama/.ollama nfs4 rw 0 0\n"
    probe = probe_ollama({}, machine(tmp_path, process(), source=TextSource({"/proc/mounts": mounts})))
    assert probe is not None
    assert probe.facts.storage is not None
    assert (probe.facts.storage.filesystem, probe.facts.storage.network) == ("nfs4", True)
    assert probe.sources["server.storage"] == "mounts"


def test_the_models_as_they_are_shown(tmp_path: Path) -> None:
    models = (InstalledModelFacts(name="m:latest", blob=BLOB, parameters=(("num_ctx", "8192"),)),)
    probe = probe_ollama({}, machine(tmp_path, process(), api=replace(API, models=models)))
    assert probe is not None
    assert probe.facts.models == models


@pytest.mark.usefixtures("own_home")
def test_the_log_of_velollm_run_is_where_it_writes_itself(tmp_path: Path) -> None:
    state = user_paths().runner_state
    state.parent.mkdir(parents=True)
    state.write_text(json.dumps({"address": "/none", "key": "00", "pid": 700, "argv": ["ollama", "serve"]}))
    log = tmp_path / "server.log"
    log.write_text("\n".join([START + ' 4096"', STARTED, START + ' 8192"', STARTED]) + "\n")
    stderr = tmp_path / "proc" / "700" / "fd" / "2"
    stderr.parent.mkdir(parents=True)
    stderr.symlink_to(log)
    models = (InstalledModelFacts(name="m:latest", blob=BLOB),)
    place = replace(machine(tmp_path, process(), api=replace(API, models=models)), parent=lambda _: 700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("velollm.probe.ollama._is_run", lambda *_: True)
        probe = probe_ollama({}, place)
    assert probe is not None
    assert probe.facts.log == str(log)
    assert probe.facts.activity is not None
    (reload,) = probe.facts.activity.option_reloads
    assert reload == OptionReload(model="m:latest", changes={"c": ("4096", "8192")}, load_s=0.5)


def test_names_take_the_place_of_files() -> None:
    seen = ServerActivity(
        failures=(FailedLoad(model="/b/1"), FailedLoad(model="/b/2")),
        option_reloads=(OptionReload(model="/b/1", changes={}),),
        engine=EngineFacts(model="/b/2"),
    )
    named = name_models(seen, {"/b/1": "one"})
    assert [failure.model for failure in named.failures] == ["one", "/b/2"]
    assert named.option_reloads[0].model == "one"
    assert named.engine is not None
    assert named.engine.model == "/b/2"
    assert name_models(ServerActivity(), {}) == ServerActivity()


def test_which_variables_of_a_server_are_looked_at() -> None:
    given = {"OMP_NUM_THREADS": "4", "LLAMA_API_KEY": "s3cret", "HOME": "/x", "LLAMA_ARG_THREADS": "", "HF_TOKEN": "x"}
    assert tuning_environment(given) == {"OMP_NUM_THREADS": "4", "LLAMA_API_KEY": "(set)", "LLAMA_ARG_THREADS": ""}
