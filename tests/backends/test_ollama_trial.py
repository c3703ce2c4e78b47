from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fake_ollama import read_log
from velollm.backends.base import Setting
from velollm.backends.ollama_log import Load, parse_loads
from velollm.backends.ollama_trial import (
    check_load,
    parse_parameter,
    private_ollama,
    trial_environ,
    trial_options,
    write_config,
)
from velollm.errors import VeloError
from velollm.knobs import KnobValue
from velollm.targets.inifile import parse_config

SETTINGS = (
    Setting("environment", "OLLAMA_NUM_PARALLEL", "4", "slots"),
    Setting("model", "num_thread", "2", "threads"),
    Setting("model", "use_mmap", "true", "load_mode"),
)


def environ(base: dict[str, str]) -> dict[str, str]:
    return trial_environ(base, Path("/home/trial"), Path("/models"), SETTINGS, 0)


def test_nothing_that_tunes_comes_from_the_user() -> None:
    users = {
        "OLLAMA_NUM_PARALLEL": "9",
        "OLLAMA_CONTEXT_LENGTH": "9",
        "OLLAMA_KV_CACHE_TYPE": "q4_0",
        "OLLAMA_HOST": "0.0.0.0",
        "OLLAMA_MODELS": "/elsewhere",
        "LLAMA_ARG_THREADS": "9",
        "HOME": "/root",
        "XDG_CONFIG_HOME": "/root/.config",
        "OMP_NUM_THREADS": "1",
        "HTTPS_PROXY": "http://proxy",
        "LLAMA_API_KEY": "secret",
    }
    assert environ(users) == environ({})


def test_what_finds_programs_and_devices_is_kept() -> None:
    users = {"PATH": "/bin", "LD_LIBRARY_PATH": "/lib", "CUDA_VISIBLE_DEVICES": "1", "ROCR_VISIBLE_DEVICES": "0"}
    assert users.items() <= environ(users).items()


def test_a_trial_is_private() -> None:
    assert environ({}) == {
        "HOME": "/home/trial",
        "USERPROFILE": "/home/trial",
        "APPDATA": "/home/trial/.config",
        "XDG_CONFIG_HOME": "/home/trial/.config",
        "OLLAMA_HOST": "127.0.0.1:0",
        "OLLAMA_MODELS": "/models",
        "OLLAMA_NOPRUNE": "1",
        "OLLAMA_NO_CLOUD": "1",
        "LLAMA_ARG_ENDPOINT_METRICS": "1",
        "GGML_NO_BACKTRACE": "1",
        "OLLAMA_NUM_PARALLEL": "4",
    }


def test_options_of_an_arm() -> None:
    knobs: dict[str, KnobValue] = {"context_tokens": 4096, "batch": 512, "threads": 2, "slots": 4}
    assert trial_options(knobs, SETTINGS) == {"num_ctx": 4096, "num_batch": 512, "num_thread": 2, "use_mmap": True}


def test_a_setting_comes_before_the_knob() -> None:
    settings = [Setting("model", "num_batch", "-1", "batch")]
    assert trial_options({"batch": 1024}, settings) == {"num_batch": -1}
    assert trial_options({}, []) == {}


def test_options_without_a_variable_go_to_the_config_of_the_trials_own_home(tmp_path: Path) -> None:
    write_config(tmp_path, SETTINGS)
    assert list(tmp_path.iterdir()) == []
    write_config(tmp_path, (*SETTINGS, Setting("config", "prio", "2", "priority")))
    found = tmp_path / ".config" / "llama.cpp" / "config.ini"
    assert parse_config(found.read_text()) == {"prio": "2"}


def test_a_priority_that_the_system_refused_is_told() -> None:
    started = 'x msg="starting llama-server" cmd="/llama-server --port 1"\n'
    read = f"{started}using config file: /h/.config/llama.cpp/config.ini\n"
    (fine,) = parse_loads(read)
    check_load(fine, {"priority": "high"})
    (refused,) = parse_loads(read + "failed to set process priority 2 : Permission denied (13)\n")
    with pytest.raises(VeloError, match=r"priority: failed to set process priority 2 : Permission denied"):
        check_load(refused, {"priority": "high"})
    check_load(refused, {"priority": "normal"})


def test_parameters_as_json() -> None:
    assert parse_parameter("num_ctx", "512") == 512
    assert parse_parameter("draft_num_predict", "2") == 2
    assert parse_parameter("use_mmap", "false") is False
    assert parse_parameter("other", "text") == "text"


@pytest.fixture
def load() -> Load:
    return parse_loads(read_log("child"))[0]


AGREED: dict[str, KnobValue] = {
    "threads": 2,
    "slots": 1,
    "batch": 512,
    "ubatch": 512,
    "context_tokens": 2048,
    "kv_type_k": "f16",
    "kv_type_v": "f16",
    "speculation": "none",
}


def test_a_load_as_asked(load: Load) -> None:
    check_load(load, AGREED)
    check_load(load, {})


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"threads": 1}, "threads is 2, not 1"),
        ({"slots": 4}, "slots is 1, not 4"),
        ({"batch": 256, "ubatch": 128}, "batch is 512, not 256; ubatch is 512, not 128"),
        ({"kv_type_k": "q8_0"}, "kv_type_k is f16, not q8_0"),
        ({"kv_type_v": "q4_0"}, "kv_type_v is f16, not q4_0"),
        ({"speculation": "ngram-mod"}, "speculation is none, not ngram-mod"),
        ({"context_tokens": 1024}, "context_tokens is 2048, not 1024"),
        ({"kv_unified": "on"}, "kv_unified is off, not on"),
        ({"priority": "high"}, "priority: the engine did not read its config.ini"),
    ],
)
def test_a_setting_that_did_not_reach_the_engine(load: Load, knobs: dict[str, KnobValue], message: str) -> None:
    with pytest.raises(VeloError, match="a setting did not reach the engine") as caught:
        check_load(load, {**AGREED, **knobs})
    assert caught.value.message.endswith(f": {message}")


def test_a_context_above_the_models_own_is_no_difference(load: Load) -> None:
    check_load(load, {"context_tokens": 8192})


def test_a_batch_above_the_context_is_no_difference() -> None:
    first, second = parse_loads(read_log("queue"))[:2]
    check_load(first, {"batch": 512, "ubatch": 512, "context_tokens": 256})
    check_load(second, {"batch": 512, "ubatch": 512, "context_tokens": 448})
    with pytest.raises(VeloError, match="batch is 256, not 128"):
        check_load(first, {"batch": 128})


def test_layers_that_went_to_the_gpu() -> None:
    text = 'msg="starting llama-server" cmd="llama-server -ngl 40"\nload_tensors: offloaded 33/33 layers to GPU\n'
    (load,) = parse_loads(text)
    check_load(load, {"gpu_layers": 33})
    check_load(load, {"gpu_layers": 40})
    check_load(load, {"gpu_layers": None})
    with pytest.raises(VeloError, match="gpu_layers is 33, not 20"):
        check_load(load, {"gpu_layers": 20})


def test_speculation_that_runs() -> None:
    (load,) = parse_loads(read_log("speculation-ngram-and-draft"))
    check_load(load, {"speculation": "ngram-mod"})
    with pytest.raises(VeloError, match="speculation is ngram-mod, draft-simple, not ngram-cache"):
        check_load(load, {"speculation": "ngram-cache"})


def test_what_the_log_does_not_tell_is_not_judged() -> None:
    check_load(Load(("llama-server",)), {**AGREED, "speculation": "ngram-mod"})


def test_gpus_that_are_gone(load: Load) -> None:
    lost = replace(load, text="warning: no usable GPU found")
    check_load(lost, {})
    with pytest.raises(VeloError, match="the GPUs are gone"):
        check_load(lost, {}, expected_gpus=True)


def private(binary: str, tmp_path: Path) -> None:
    with private_ollama(binary, "m", tmp_path, {}, (), log=tmp_path / "log"):
        raise AssertionError("it must not start")


def program(tmp_path: Path, code: str) -> str:
    path = tmp_path / "ollama"
    path.write_text(f"#!{sys.executable}\n{code}\n")
    path.chmod(0o755)
    return str(path)


def leftovers(tmp_path: Path) -> list[str]:
    return [path.name for path in tmp_path.iterdir() if path.name.startswith("velollm-ollama-")]


@pytest.fixture(autouse=True)
def own_temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_a_program_that_ends_at_once_tells_why(tmp_path: Path) -> None:
    binary = program(tmp_path, "print('Error: listen tcp: address already in use')")
    with pytest.raises(VeloError, match="did not start: Error: listen tcp: address already in use"):
        private(binary, tmp_path)
    assert leftovers(tmp_path) == []


def test_a_load_that_fails_tells_the_reason_of_its_log(tmp_path: Path) -> None:
    reason = 'error while handling environment variable "LLAMA_ARG_THREADS": stoi'
    code = f"""
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        print({reason!r}, file=sys.stderr, flush=True)
        self.send_response(500); self.end_headers()
        self.wfile.write(b'{{"error":"llama-server process has terminated: exit status 1"}}')
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
port = server.server_address[1]
print(f'time=x msg="Listening on 127.0.0.1:{{port}} (version 0.0.0)"', file=sys.stderr, flush=True)
server.serve_forever()
"""
    with pytest.raises(VeloError) as caught:
        private(program(tmp_path, code), tmp_path)
    assert caught.value.message == f"Ollama could not load m: {reason}"
    assert leftovers(tmp_path) == []


def test_a_server_without_llama_server_is_not_tried(tmp_path: Path) -> None:
    code = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.send_response(200); self.end_headers()
        self.wfile.write(b'{"done":true}')
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
port = server.server_address[1]
print(f'time=x msg="Listening on 127.0.0.1:{port} (version 0.5.0)"', file=sys.stderr, flush=True)
server.serve_forever()
"""
    with pytest.raises(VeloError, match="does not run llama-server"):
        private(program(tmp_path, code), tmp_path)
