"""A plan as files to take along: environment file, Modelfile, systemd drop-in, Compose override."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from velollm.backends.base import Setting
from velollm.errors import VeloError
from velollm.knobs import KnobValue, parse_knob_value
from velollm.targets.base import State
from velollm.targets.composefile import render_environment
from velollm.targets.disk import disk_error, make_dirs, missing_dirs, remove_empty_dirs, sync_dir
from velollm.targets.enginefile import render_engine_settings
from velollm.targets.envfile import render_env
from velollm.targets.file import FileTarget
from velollm.targets.unitfile import render_dropin

ENV_FILE = "velollm.env"
MODEL_FILE = "Modelfile"
SYSTEMD_FILE = "ollama.service.d/velollm.conf"
COMPOSE_FILE = "compose.override.yaml"
ENGINE_FILE = "engine.yaml"
_HEADER = "# Written by VeloLLM"


def render_export(settings: Sequence[Setting], model: str) -> dict[str, str]:
    """The plan's files: path inside the export directory to text.

    Always the four that Ollama can use, even where the plan leaves one without a setting; ``engine.yaml`` besides
    where there are engine settings.

    Raises:
        VeloError: a name or value cannot be written in one of them (a line break in it).
    """
    for setting in settings:
        _check(setting.key, setting.value)
    _check("FROM", model)
    environment = {s.key: s.value for s in settings if s.target == "environment"}
    files = {
        ENV_FILE: render_env(f"{_HEADER}: `velollm run`, `docker run --env-file` or a shell reads it.\n", environment),
        MODEL_FILE: _render_modelfile([s for s in settings if s.target == "model"], model),
        SYSTEMD_FILE: _render_systemd(environment),
        COMPOSE_FILE: _render_compose(environment),
    }
    engine = {s.key: _engine_value(s) for s in settings if s.target == "engine"}
    if engine:
        files[ENGINE_FILE] = render_engine_settings("", model, engine)
    return files


def write_export(directory: Path, files: Mapping[str, str]) -> tuple[Path, ...]:
    """Write the set, all of it or nothing; the paths in the order of ``files``.

    A new directory appears in one step. In one that is there each file is replaced in one step, and only if VeloLLM
    wrote it; what a kill leaves undone there, the same export does.

    Raises:
        VeloError: a file of somebody else is in the way, or the disk refuses.
    """
    paths = tuple(directory / name for name in files)
    if directory.exists():
        _write_set(directory, files)
        return paths
    made = _temporary_dir(directory)
    parents: tuple[str, ...] = ()
    try:
        shutil.rmtree(made, ignore_errors=True)  # what a killed run has left
        parents = missing_dirs(made)
        make_dirs(parents)
        _write_set(made, files)
        made = made.replace(directory)
        sync_dir(directory.parent)
    except BaseException as error:
        shutil.rmtree(made, ignore_errors=True)
        remove_empty_dirs(parents)
        if isinstance(error, OSError):
            raise disk_error("write", directory, error) from error
        raise
    return paths


def _temporary_dir(directory: Path) -> Path:
    name = hashlib.sha256(os.fsencode(directory.name)).hexdigest()[:16]
    return directory.with_name(f".velollm-{name}.tmp")


def _write_set(directory: Path, files: Mapping[str, str]) -> None:
    targets = {directory / name: FileTarget(directory / name) for name in files}
    wanted = [State.of_text(text) for text in files.values()]
    before = [target.read() for target in targets.values()]
    for path, state in zip(targets, before, strict=True):
        if state.content is not None and not state.text.startswith(_HEADER):
            raise VeloError(f"{path} is there already and is not VeloLLM's", "name another directory for --export")
    try:
        for target, state in zip(targets.values(), wanted, strict=True):
            target.stage(state)
        for target, state in zip(targets.values(), wanted, strict=True):
            target.write(state)
    except BaseException:
        _put_back(list(targets.values()), before)
        raise


def _put_back(targets: list[FileTarget], before: list[State]) -> None:
    """Restore what was there, last first, so that what was only staged gives its space back before."""
    for target, state in zip(reversed(targets), reversed(before), strict=True):
        target.tidy(state)
        with contextlib.suppress(VeloError):  # the error that led here is the one to tell
            if not target.read().matches(state):
                target.write(state)


def _check(key: str, value: str) -> None:
    if re.search(r"[\x00-\x1f\x7f]", key + value):
        raise VeloError(f"the value of {key} has a line break or control character in it", "give a plain value")


def _engine_value(setting: Setting) -> KnobValue:
    try:
        return parse_knob_value(setting.key, setting.value)
    except ValueError:
        return setting.value


def _render_modelfile(parameters: Sequence[Setting], model: str) -> str:
    lines = [f"{_HEADER}: `ollama create NAME -f Modelfile` makes a tuned model of it.", f"FROM {_model_quote(model)}"]
    lines += [f"PARAMETER {setting.key} {_model_quote(setting.value)}" for setting in parameters]
    return "\n".join(lines) + "\n"


def _model_quote(value: str) -> str:
    """A Modelfile value. There a quote counts only at the very start and end (Ollama, parser/parser.go, `unquote`)."""
    if value.startswith('"') or value.endswith('"'):
        return f'"""{value}"""'
    return f'"{value}"' if value != value.strip() or not value else value


def _render_systemd(environment: Mapping[str, str]) -> str:
    header = (
        f"{_HEADER}: copy it to /etc/systemd/system/{SYSTEMD_FILE}, then\n"
        "# `systemctl daemon-reload` and `systemctl restart ollama`.\n"
    )
    return render_dropin(environment, header)


def _render_compose(environment: Mapping[str, str]) -> str:
    header = f"{_HEADER}: put it beside your compose.yaml; `docker compose up -d` reads both.\n"
    if not environment:
        return f"{header}services:\n  ollama:\n    environment: {{}}\n"
    return render_environment(header, "ollama", environment)
