"""The probe of the user's server, on machines laid out as texts, and against what a real one recorded."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.probe.test_ollama_places import JOURNAL, SHOW, UNIT
from tests.shared import shared_dir
from velollm.backends.ollama_find import ServerProcess
from velollm.facts import LoadedModelFacts
from velollm.probe.ollama import Machine, probe_ollama, tuning_environment
from velollm.probe.ollama_api import ApiReading, parse_loaded_facts, read_api, read_blob_names
from velollm.probe.source import TextSource

URL = "http://127.0.0.1:11434"
BLOB = "/usr/share/ollama/.ollama/models/blobs/sha256-" + "a" * 64
ENGINE = ("/usr/lib/ollama/llama-server", "--model", BLOB, "--port", "4000", "-c", "8192", "-np", "2", "-b", "512")
SERVE = ("/usr/local/bin/ollama", "serve")
MODEL = LoadedModelFacts(name="m:latest", size_bytes=1000, gpu_bytes=0, context_tokens=4096, keep_alive_left_s=200)
API = ApiReading("0.33.0", ("m:latest",), (MODEL,), "/usr/share/ollama/.ollama/models", {"m:latest": BLOB})


def process(**changes: Any) -> ServerProcess:
    values: dict[str, Any] = {
        "pid": 812,
        "exe": "/usr/local/bin/ollama",
        "user": "ollama",
        "argv": SERVE,
        "environ": {"OLLAMA_NUM_PARALLEL": "2", "PATH": "/bin", "HOME": "/x", "OLLAMA_API_KEY": "s3cret"},
        "port": 11434,
        "children": ((900, ENGINE),),
    }
    return ServerProcess(**{**values, **changes})


def machine(
    tmp_path: Path, *found: ServerProcess, source: TextSource | None = None, api: ApiReading | None = API
) -> Machine:
    return Machine(
        source=source or TextSource(),
        proc=tmp_path / "proc",
        platform="linux",
        home=tmp_path,
        processes=lambda: found,
        parent=lambda _: None,
        which=lambda _: None,
        answers=lambda _: api is not None,
        api=lambda _: api,
        listening=lambda _: ("127.0.0.1",),
    )


def test_no_sign_of_ollama_is_no_server(tmp_path: Path) -> None:
    assert probe_ollama({}, machine(tmp_path, api=None)) is None


def test_what_a_process_by_hand_tells(tmp_path: Path) -> None:
    probe = probe_ollama({}, machine(tmp_path, process()))
    assert probe is not None
    facts = probe.facts
    assert (facts.url, facts.reachable, facts.remote, facts.managed) == (URL, True, False, "by hand")
    assert (facts.version, facts.generation, facts.runner) == ("0.33.0", "llama-server", "llama-server")
    assert (facts.pid, facts.user, facts.argv) == (812, "ollama", SERVE)
    assert facts.environment == {"OLLAMA_NUM_PARALLEL": "2", "OLLAMA_API_KEY": "(set)"}
    assert (facts.context_tokens, facts.slots, facts.keep_alive_s) == (4096, 2, 300)
    assert facts.loaded == (MODEL.model_copy(update={"slots": 2, "argv": ENGINE}),)
    assert facts.installed == ("m:latest",)
    assert facts.models_dir == "/usr/share/ollama/.ollama/models"
    assert {unread.what for unread in facts.unreadable} == {"models"}
    assert probe.sources["server.environment"] == "/proc/812/environ"
    assert probe.sources["server.slots"] == "/proc/900/cmdline"
    assert probe.sources["server.version"] == f"{URL}/api/version"


def test_every_value_has_a_source(tmp_path: Path) -> None:
    source = TextSource(
        {"/run/systemd/system": "", "/etc/default/ollama": "OLLAMA_DEBUG=1\n"}, {SHOW: UNIT, JOURNAL: "x\n"}
    )
    source.files["/proc/812/cgroup"] = "0::/system.slice/ollama.service\n"
    probe = probe_ollama({}, machine(tmp_path, process(), source=source))
    assert probe is not None
    known = probe.facts.model_dump(exclude_defaults=True)
    assert {f"server.{name}" for name in known} - probe.sources.keys() == {"server.engine", "server.unreadable"}
    assert all(probe.sources.values())


def test_the_usual_linux_service_of_another_user(tmp_path: Path) -> None:
    """Its environment and port cannot be read; command lines, systemd and the API still tell."""
    source = TextSource(
        {"/run/systemd/system": "", "/proc/812/cgroup": "0::/system.slice/ollama.service\n"}, {SHOW: UNIT}
    )
    hidden = process(exe=None, environ=None, port=None, unreadable=("environ", "exe", "net_connections"))
    probe = probe_ollama({}, machine(tmp_path, hidden, source=source))
    assert probe is not None
    facts = probe.facts
    assert (facts.managed, facts.unit, facts.unit_state) == ("systemd", "ollama.service", "active")
    assert (facts.environment, facts.slots, facts.keep_alive_s) == (None, 2, None)
    assert facts.configured == {"systemctl show ollama.service": {"OLLAMA_ORIGINS": "a b", "OLLAMA_NUM_PARALLEL": "2"}}
    helped = {unread.what: unread.help for unread in facts.unreadable}
    assert "sudo" in helped["environment"]
    assert "systemd-journal" in helped["log"]
    assert "usermod -aG ollama" in helped["models"]


def test_the_log_tells_what_the_environment_of_another_user_hides(tmp_path: Path) -> None:
    recorded = shared_dir("ollama") / "0.33.0-rc2" / "logs" / "start-load-reload.log"
    source = TextSource(
        {"/run/systemd/system": "", "/proc/812/cgroup": "0::/system.slice/ollama.service\n"},
        {SHOW: UNIT, JOURNAL: recorded.read_text(encoding="utf-8")},
    )
    probe = probe_ollama({}, machine(tmp_path, process(environ=None), source=source))
    assert probe is not None
    assert (probe.facts.logged_environment or {})["OLLAMA_NUM_PARALLEL"] == "1"
    assert (probe.facts.keep_alive_s, probe.facts.threads) == (300, 2)
    assert probe.sources["server.threads"] == "journal of ollama.service"
    assert probe.facts.activity is not None
    assert probe.facts.activity.compute == ("cpu",)


def test_a_stopped_service(tmp_path: Path) -> None:
    text = UNIT.replace("active", "inactive").replace("812", "0")
    source = TextSource({"/run/systemd/system": ""}, {SHOW: text})
    probe = probe_ollama({}, machine(tmp_path, source=source, api=None))
    assert probe is not None
    assert (probe.facts.reachable, probe.facts.unit_state, probe.facts.pid) == (False, "inactive", None)


def test_a_service_that_this_process_does_not_belong_to_is_left_out(tmp_path: Path) -> None:
    source = TextSource({"/run/systemd/system": "", "/proc/5/cgroup": "0::/user.slice/session-1.scope\n"}, {SHOW: UNIT})
    probe = probe_ollama({}, machine(tmp_path, process(pid=5), source=source))
    assert probe is not None
    assert (probe.facts.managed, probe.facts.unit, probe.facts.configured) == ("by hand", None, None)


def test_a_container(tmp_path: Path) -> None:
    source = TextSource({"/proc/812/cgroup": "0::/system.slice/docker-12.scope\n", "/proc/self/cgroup": "0::/a\n"})
    probe = probe_ollama({}, machine(tmp_path, process(), source=source))
    assert probe is not None
    assert probe.facts.managed == "container"


def test_a_server_whose_process_cannot_be_seen(tmp_path: Path) -> None:
    probe = probe_ollama({}, machine(tmp_path))
    assert probe is not None
    assert (probe.facts.reachable, probe.facts.pid, probe.facts.managed) == (True, None, None)
    assert "process" in {unread.what for unread in probe.facts.unreadable}


def test_a_remote_server_is_known_by_its_api_alone(tmp_path: Path) -> None:
    probe = probe_ollama({"OLLAMA_HOST": "10.1.2.3"}, machine(tmp_path, process()))
    assert probe is not None
    facts = probe.facts
    assert (facts.url, facts.remote, facts.version) == ("http://10.1.2.3:11434", True, "0.33.0")
    assert (facts.pid, facts.environment, facts.models_dir, facts.log) == (None, None, None, None)
    assert [unread.what for unread in facts.unreadable] == ["process"]


def test_a_source_build_is_known_by_its_child(tmp_path: Path) -> None:
    built = ApiReading("0.0.0", (), ())
    of_child = probe_ollama({}, machine(tmp_path, process(), api=built))
    without = probe_ollama({}, machine(tmp_path, process(children=()), api=built))
    assert of_child is not None
    assert without is not None
    assert (of_child.facts.generation, without.facts.generation) == ("llama-server", None)


@pytest.mark.parametrize(("version", "kind"), [("0.24.0", "runner"), ("0.30.0", "llama-server")])
def test_the_generation_goes_by_the_version(tmp_path: Path, version: str, kind: str) -> None:
    probe = probe_ollama({}, machine(tmp_path, process(children=()), api=ApiReading(version, (), ())))
    assert probe is not None
    assert probe.facts.generation == kind


def test_a_server_at_another_port(tmp_path: Path) -> None:
    there = process(port=12000, environ={"OLLAMA_HOST": ":12000"})
    look = replace(machine(tmp_path, there), answers=lambda url: url.endswith(":12000"))
    probe = probe_ollama({}, look)
    assert probe is not None
    assert (probe.facts.url, probe.facts.reachable, probe.facts.elsewhere) == ("http://127.0.0.1:12000", True, None)
    assert probe.sources["server.url"] == "process list"


def test_several_servers_at_other_ports(tmp_path: Path) -> None:
    two = process(port=12000, environ={"OLLAMA_HOST": ":12000"}), process(pid=813, port=13000, environ={})
    probe = probe_ollama({}, machine(tmp_path, *two, api=None))
    assert probe is not None
    assert probe.facts.reachable is False
    assert probe.facts.elsewhere == ("http://127.0.0.1:12000", "http://127.0.0.1:13000")


def test_two_models_get_the_engine_that_holds_each(tmp_path: Path) -> None:
    other = BLOB.replace("a" * 64, "b" * 64)
    second = ("/usr/lib/ollama/llama-server", "--model", other, "-c", "4096", "-np", "1")
    api = ApiReading(
        "0.33.0", (), (MODEL, MODEL.model_copy(update={"name": "n"})), None, {"m:latest": BLOB, "n": other}
    )
    probe = probe_ollama({}, machine(tmp_path, process(children=((1, ENGINE), (2, second))), api=api))
    assert probe is not None
    assert [model.slots for model in probe.facts.loaded or ()] == [2, 1]
    assert probe.facts.slots is None  # of which of the two?


def test_only_tuning_variables_are_kept_and_secrets_hidden() -> None:
    kept = tuning_environment(
        {"PATH": "/", "CUDA_VISIBLE_DEVICES": "0", "LLAMA_ARG_HF_TOKEN": "x", "AWS_SECRET": "y", "OLLAMA_HOST": "h"}
    )
    assert kept == {"CUDA_VISIBLE_DEVICES": "0", "LLAMA_ARG_HF_TOKEN": "(set)", "OLLAMA_HOST": "h"}


@contextmanager
def serving(routes: dict[str, Any]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            self.rfile.read(length)
            body = json.dumps(routes.get(self.path, {"error": "not found"})).encode()
            self.send_response(200 if self.path in routes else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815 - the name that http.server calls

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def recorded(name: str) -> Any:
    text = (shared_dir("ollama") / "0.33.0-rc2" / "exchanges" / f"{name}.json").read_text(encoding="utf-8")
    return json.loads(text)["response"]["body"]


def test_the_api_as_recorded() -> None:
    modelfile = f"FROM {BLOB}\n"
    routes = {
        "/api/version": {"version": "0.33.0-rc2"},
        "/api/tags": recorded("tags"),
        "/api/ps": recorded("ps-loaded"),
        "/api/show": {"modelfile": modelfile},
    }
    with serving(routes) as url:
        read = read_api(url)
    assert read is not None
    assert read.installed
    assert read.models_dir == "/usr/share/ollama/.ollama/models"
    assert read.loaded is not None
    assert (read.loaded[0].gpu_bytes, read.loaded[0].context_tokens) == (0, 2048)
    assert read.blobs == {read.loaded[0].name: BLOB}


def test_what_is_no_ollama_is_none() -> None:
    with serving({"/": {}}) as url:
        assert read_api(url) is None
    with serving({"/api/version": {"other": 1}}) as url:
        assert read_api(url) is None


def test_an_api_that_tells_only_its_version() -> None:
    with serving({"/api/version": {"version": "0.1.2"}}) as url:
        assert read_api(url) == ApiReading("0.1.2")


def test_an_entry_of_a_loaded_model() -> None:
    assert parse_loaded_facts({"name": "m"}) == LoadedModelFacts(name="m")
    for_ever = parse_loaded_facts(recorded("ps-forever")["models"][0])
    assert for_ever.keep_alive_left_s == -1


def test_names_of_blobs(tmp_path: Path) -> None:
    digest = "c" * 64
    (tmp_path / "blobs").mkdir()
    blob = tmp_path / "blobs" / f"sha256-{digest}"
    blob.write_bytes(b"GGUF")
    for tag in ("latest", "x"):
        manifest = tmp_path / "manifests" / "registry.ollama.ai" / "library" / "m" / tag
        manifest.parent.mkdir(parents=True, exist_ok=True)
        layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}"}
        manifest.write_text(json.dumps({"layers": [layer]}))
    assert read_blob_names(["m:x", "m:latest", "absent"], tmp_path) == {str(blob): "m:latest, m:x"}


def test_the_recorded_child() -> None:
    """Its command line, as the process list of a real server showed it, gives what runs."""
    text = (shared_dir("ollama") / "0.33.0-rc2" / "child" / "processes.txt").read_text(encoding="utf-8")
    words = re.findall(r"^  (\S+)$", text.partition("# its child")[2].partition("environ:")[0], re.MULTILINE)
    probe = probe_ollama({}, machine(Path("/none"), process(children=((5, tuple(words)),)), api=ApiReading("0.33.0")))
    assert probe is not None
    assert (probe.facts.context_tokens, probe.facts.slots, probe.facts.batch) == (2048, 2, 512)


def test_nothing_that_listens_costs_no_time() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        quiet = Machine(processes=lambda: (), which=lambda _: None, api=lambda _: pytest.fail("asked a closed port"))
        probe = probe_ollama({"OLLAMA_HOST": f"127.0.0.1:{port}"}, quiet)
    assert probe is None or probe.facts.reachable is False
