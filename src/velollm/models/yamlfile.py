"""The tables that ship with the program, read with the fast loader where PyYAML has it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from velollm.config import data_dir
from velollm.errors import VeloError


@lru_cache(maxsize=8)
def _load_table(name: str) -> dict[str, Any]:
    import yaml

    path = data_dir("configs") / f"{name}.yaml"
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        document = yaml.load(path.read_bytes(), loader)  # noqa: S506 - both are safe loaders
    except (OSError, yaml.YAMLError) as error:
        raise VeloError(
            f"the program's own table {path} cannot be read: {' '.join(str(error).split())}",
            "install VeloLLM again: `pipx install --force .` in its source tree",
        ) from error
    if not isinstance(document, dict):
        raise VeloError(f"the program's own table {path} holds no table", "install VeloLLM again")
    return document


def load_rows(name: str, key: str) -> list[dict[str, Any]]:
    """The rows under ``key`` of ``configs/NAME.yaml``; the file is read once.

    Raises:
        VeloError: the file is missing or broken.
    """
    rows = _load_table(name).get(key)
    return rows if isinstance(rows, list) else []


def load_value(name: str, key: str) -> Any:
    """Another value of ``configs/NAME.yaml``; None where there is none."""
    return _load_table(name).get(key)
