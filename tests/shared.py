"""Data that lies beside the repository and is never copied into it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_BESIDE = Path(__file__).resolve().parents[2] / "shared"


def find_shared(name: str) -> Path | None:
    """A folder of the shared data; None where it is absent. ``VELOLLM_SHARED`` names another place."""
    root = Path(os.environ.get("VELOLLM_SHARED") or _BESIDE)
    return root / name if (root / name).is_dir() else None


def shared_dir(name: str) -> Path:
    """A folder of the shared data; skips the test where it is absent."""
    path = find_shared(name)
    if path is None:
        pytest.skip(f"the shared folder {name} is not here")
    return path
