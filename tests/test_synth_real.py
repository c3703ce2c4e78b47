"""Made models in a real Ollama: it takes them, writes with them, and tells enough of them to make a twin."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import httpx
import pytest

from tests.real_ollama import RealOllama, served
from velollm.autopilot.made import Wish, draw
from velollm.models.families import get_family, read_families
from velollm.models.header import TensorInfo, read_gguf
from velollm.models.synthetic import Recipe, draw_blueprint, write_model
from velollm.models.writer import NewTensor

pytestmark = pytest.mark.ollama
TINY = [family.name for family in read_families() if family.is_tiny]


server = pytest.fixture(scope="module")(served)


def formats(tensors: Iterable[NewTensor | TensorInfo]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and format of each tensor; Ollama leaves out a last dimension of 1."""
    return {info.name: (info.shape[:-1] if info.shape[-1] == 1 else info.shape, info.type_name) for info in tensors}


@pytest.mark.parametrize("name", TINY)
def test_ollama_takes_every_architecture(name: str, server: RealOllama, tmp_path: Path) -> None:
    path = tmp_path / "made.gguf"
    write_model(path, draw_blueprint(get_family(name).shape, Recipe("q4_K_M")))
    (tmp_path / "Modelfile").write_text(f"FROM {path}\n")
    binary, own = shutil.which("ollama"), f"made-{name.replace(':', '-')}"
    assert binary is not None
    create = [binary, "create", own, "-f", str(tmp_path / "Modelfile")]
    done = subprocess.run(create, env=server.environ(tmp_path), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    try:
        options = {"num_predict": 12, "num_ctx": 512, "num_thread": 1, "seed": 1, "temperature": 1}
        body = {"model": own, "prompt": "Hello", "stream": False, "options": options, "keep_alive": 0}
        answer = httpx.post(f"{server.url}/api/generate", json=body, trust_env=False, timeout=60).json()
        assert answer.get("eval_count") == 12, answer
        assert answer["response"].strip()
        twin = draw(Wish(like=own), server.url)
        assert formats(twin.tensors) == formats(read_gguf(path).tensors)
        told = dict(twin.metadata)
        prefix = f"{get_family(name).shape.architecture}."
        for key, value in draw_blueprint(get_family(name).shape, Recipe("q4_K_M")).metadata:
            if key.startswith(prefix):
                assert told[key] == pytest.approx(value), key
    finally:
        httpx.request("DELETE", f"{server.url}/api/delete", json={"model": own}, trust_env=False)
