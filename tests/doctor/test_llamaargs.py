"""Names of llama.cpp's variables."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from velollm.doctor.llama_environment import _OVERRIDDEN, _WORDS
from velollm.doctor.llamaargs import llama_names


def test_kinds() -> None:
    names = llama_names()
    assert names.kind("LLAMA_ARG_THREADS") == "number"
    assert names.kind("LLAMA_ARG_REPACK") == "switch"
    assert names.kind("LLAMA_ARG_NO_REPACK") == "flag"
    assert names.kind("LLAMA_ARG_NO_THREADS") is None
    assert names.kind("LLAMA_ARG_NO_HOST") == "flag"
    assert names.near("LLAMA_ARG_THREAD") == "LLAMA_ARG_THREADS"


def test_every_name_that_a_check_knows_exists() -> None:
    names = llama_names()
    assert {*_WORDS, *_OVERRIDDEN, *names.removed.values()} <= names.kinds.keys()
    assert not set(names.removed) & names.kinds.keys()
    assert not names.others & names.kinds.keys()
    assert names.pins["0.33.0-rc2"] == names.build


@pytest.mark.ollama
def test_the_engine_itself_knows_the_same_names() -> None:
    server = _find_engine()
    if server is None:
        pytest.skip("there is no llama-server beside ollama")
    told = subprocess.run([server, "--version"], capture_output=True, text=True, timeout=30, env=_environ(server))
    text = subprocess.run([server, "--help"], capture_output=True, text=True, timeout=30, env=_environ(server))
    shown = set(re.findall(r"\(env: (LLAMA_\w+)\)", text.stdout))
    names = llama_names()
    if f"{names.build}" not in told.stderr + told.stdout and "LLAMA_ARG_LAZY_MODE" in shown:
        pytest.skip("the engine is of another build")
    # Only a build with that backend has the variable of remote engines.
    assert shown == {*names.kinds, *names.removed} - {"LLAMA_ARG_RPC"}


def _find_engine() -> str | None:
    ollama = shutil.which("ollama")
    if ollama is None:
        return None
    binary = Path(ollama).resolve()
    roots = (binary.parent, binary.parent.parent / "lib" / "ollama", binary.parent.parent / "build" / "bin")
    return next((str(root / "llama-server") for root in roots if (root / "llama-server").is_file()), None)


def _environ(server: str) -> dict[str, str]:
    return {**os.environ, "LD_LIBRARY_PATH": str(Path(server).parent)}
