"""A private `ollama serve` over the user's own model files, with the knobs read back from what really runs."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from velollm.backends.base import Setting
from velollm.backends.child import Child, name_shortage
from velollm.backends.guard import guarded
from velollm.backends.llamaargs import NO_DEBUGGER, OPTION_KNOBS
from velollm.backends.ollama_home import private_home
from velollm.backends.ollama_http import OllamaApi, OllamaRefusalError, OllamaServer
from velollm.backends.ollama_log import Load, parse_failure, parse_listening, parse_loads
from velollm.backends.ollama_render import HEADS_PARAMETER
from velollm.errors import EngineError, VeloError
from velollm.knobs import Knobs, KnobValue

_START_S = 60.0
_LAST_WORDS_S = 1.0
# common/common.cpp:275 and ggml-cpu.c:2604 of llama.cpp b10488.
_PRIORITY_REFUSED = re.compile(r"(failed to set (?:process|thread) priority [^\n]*)")
# Of the user's environment a trial keeps what finds programs, libraries and devices, and nothing that tunes.
_KEPT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "SYSTEMROOT", "TMPDIR", "TEMP", "TMP")
_KEPT_PREFIXES = ("CUDA_", "HIP_", "ROCR_", "HSA_", "GGML_", "NVIDIA_")
_WHOLE_NUMBERS = frozenset({"num_ctx", "num_batch", "num_thread", "num_gpu", HEADS_PARAMETER})


def trial_environ(
    base: Mapping[str, str], home: Path, models_dir: Path, settings: Sequence[Setting], port: int = 0
) -> dict[str, str]:
    """Environment of a private server: no cloud, no pruning, a home of its own, and only the trial's settings."""
    kept = {k: v for k, v in base.items() if k.upper() in _KEPT or k.startswith(_KEPT_PREFIXES)}
    ours = {setting.key: setting.value for setting in settings if setting.target == "environment"}
    return {
        **kept,
        "HOME": str(home),
        "USERPROFILE": str(home),
        "APPDATA": str(home / ".config"),
        "XDG_CONFIG_HOME": str(home / ".config"),
        "OLLAMA_HOST": f"127.0.0.1:{port}",
        "OLLAMA_MODELS": str(models_dir),
        "OLLAMA_NOPRUNE": "1",
        "OLLAMA_NO_CLOUD": "1",
        "LLAMA_ARG_ENDPOINT_METRICS": "1",
        **NO_DEBUGGER,
        **ours,
    }


def write_config(home: Path, settings: Sequence[Setting]) -> None:
    """The config.ini of a private server's engine: llama.cpp b10488 common/common.cpp:1072, common/arg.cpp:717-761."""
    options = [f"{setting.key} = {setting.value}" for setting in settings if setting.target == "config"]
    if not options:
        return
    path = home / ".config" / "llama.cpp" / "config.ini"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(["[*]", *options, ""]), encoding="utf-8")


def trial_options(knobs: Knobs, settings: Sequence[Setting]) -> dict[str, object]:
    """Request options of an arm: its model settings, and context and batch in any case.

    What is not given would come from the PARAMETERs of the user's model.
    """
    options: dict[str, object] = {}
    for name, knob in (("num_ctx", "context_tokens"), ("num_batch", "batch")):
        if isinstance(value := knobs.get(knob), int):
            options[name] = value
    for setting in settings:
        if setting.target == "model":
            options[setting.key] = parse_parameter(setting.key, setting.value)
    return options


def parse_parameter(name: str, text: str) -> object:
    """A model parameter as JSON: numbers and truth values as such."""
    if name in _WHOLE_NUMBERS:
        return int(text)
    if text in ("true", "false"):
        return text == "true"
    return text


@contextlib.contextmanager
def private_ollama(
    binary: str,
    model: str,
    models_dir: Path,
    knobs: Knobs,
    settings: Sequence[Setting],
    *,
    log: Path,
    port: int = 0,
    expected_gpus: bool = False,
) -> Iterator[OllamaServer]:
    """Start it, load the model, check that every knob took, hand it out; end the whole process group.

    Raises:
        VeloError: it does not start, the model does not load (with the reason from its log), or a knob did not take.
    """
    with contextlib.ExitStack() as stack:
        home = stack.enter_context(private_home())
        argv = guarded([binary, "serve"])
        environ = trial_environ(os.environ, home, models_dir, settings, port)
        write_config(home, settings)
        child = Child(argv, log=log, environ=environ, ready=parse_listening, cwd=home)
        stack.callback(child.stop, gently=True)
        address = child.wait_ready(_START_S)
        if address is None:
            raise EngineError(
                "the private Ollama server did not start",
                child.why_it_failed() or "no reason in its log",
                f"its log is {log}",
            )
        api = OllamaApi(f"http://{address}")
        stack.callback(api.close)
        options = trial_options(knobs, settings)
        load = _load(api, model, options, child)
        check_load(load, {s.knob: knobs.get(s.knob) for s in settings}, expected_gpus=expected_gpus)
        yield OllamaServer(
            api,
            model,
            options,
            child_url=load.url,
            pids=lambda: engine_pids(child.pid),
            wait=child.wait_end,
            keep_alive=-1,
            log=child.read_log,
        )


def _load(api: OllamaApi, model: str, options: Mapping[str, object], child: Child) -> Load:
    try:
        api.load(model, options, keep_alive=-1)
    except OllamaRefusalError as error:
        reason = name_shortage(child.wait_for(parse_failure, _LAST_WORDS_S) or error.reason)
        raise EngineError(f"Ollama could not load {model}", reason, f"its log is {child.log}") from error
    loads = parse_loads(child.read_log())
    if not loads:
        raise VeloError(
            "this Ollama does not run llama-server, so what really runs cannot be read back",
            "install Ollama 0.30 or later",
        )
    return loads[-1]


def check_load(load: Load, knobs: Knobs, *, expected_gpus: bool = False) -> None:
    """Written is not running: compare what the child said with what was asked for. Raises `VeloError` at a difference.

    A context above the model's own is cut by Ollama, and a batch above the context by llama.cpp
    (src/llama-context.cpp), so a smaller one is no error; a knob of which the log says nothing is not judged.
    """
    wrong: list[str] = []
    for name in ("threads", "slots", "batch", "ubatch", "kv_type_k", "kv_type_v", "kv_unified", "gpu_layers"):
        asked, runs = knobs.get(name), load.values.get(name)
        if asked is not None and runs is not None and runs != _cut(name, asked, load):
            wrong.append(f"{name} is {runs}, not {asked}")
    asked = knobs.get("speculation")
    if asked not in (None, "none") and load.values.get("slots") is not None and asked not in load.speculation:
        wrong.append(f"speculation is {', '.join(load.speculation) or 'none'}, not {asked}")
    by_config = [name for name in OPTION_KNOBS if knobs.get(name) not in (None, "normal")]
    if by_config and "using config file: " not in load.text:
        wrong.append(f"{', '.join(by_config)}: the engine did not read its config.ini")
    elif "priority" in by_config and (refused := _PRIORITY_REFUSED.search(load.text)) is not None:
        wrong.append(f"priority: {refused.group(1)}")
    context, runs_with = knobs.get("context_tokens"), load.values.get("context_tokens")
    if isinstance(context, int) and isinstance(runs_with, int) and runs_with > context + 255:
        wrong.append(f"context_tokens is {runs_with}, not {context}")
    if expected_gpus and "no usable GPU found" in load.text:
        wrong.append("the GPUs are gone")
    if wrong:
        raise VeloError(
            f"a setting did not reach the engine: {'; '.join(wrong)}", "report it, with your version of Ollama"
        )


def _cut(name: str, asked: KnobValue, load: Load) -> KnobValue:
    """What becomes of a value that was asked for: a batch ends at the context, layers at how many there are."""
    total = load.flag("-c") or ""
    if name == "gpu_layers" and isinstance(asked, int) and isinstance(layers := load.values.get("total_layers"), int):
        return min(asked, layers)
    if name not in ("batch", "ubatch") or not isinstance(asked, int) or not total.isdecimal():
        return asked
    return min(asked, int(total))


def engine_pids(root: int) -> tuple[int, ...]:
    """The llama-server processes below a server's process: they hold the model."""
    try:
        below = psutil.Process(root).children(recursive=True)
    except psutil.Error:
        return ()
    return tuple(process.pid for process in below if _name(process).startswith("llama-server"))


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return ""
