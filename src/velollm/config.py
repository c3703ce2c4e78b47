"""Where VeloLLM keeps its things: the user's files, and the data that ships with the program."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from velollm.errors import VeloError

_PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Paths:
    """The user's directories: ``config`` (settings), ``data`` (journal, history), ``cache`` (made models)."""

    config: Path
    data: Path
    cache: Path

    @property
    def journal(self) -> Path:
        """Directory with one append-only file for each flight."""
        return self.data / "journal"

    @property
    def engine_env(self) -> Path:
        """Environment file that ``velollm run`` gives the engine."""
        return self.config / "engine.env"

    @property
    def ollama_env(self) -> Path:
        """Environment file that ``velollm run -- ollama serve`` gives the server."""
        return self.config / "ollama.env"

    @property
    def runner_state(self) -> Path:
        """How to reach the ``velollm run`` that is the parent of a server."""
        return self.data / "run.json"

    @property
    def engine_settings(self) -> Path:
        """Per-model engine settings that ``velollm run`` uses."""
        return self.config / "engine.yaml"


def user_paths(environ: Mapping[str, str] | None = None) -> Paths:
    """The user's directories, all under ``$VELOLLM_HOME`` where that is set, else the platform's own."""
    env = os.environ if environ is None else environ
    home = env.get("VELOLLM_HOME")
    if home:
        root = Path(home)
        return Paths(root / "config", root / "data", root / "cache")
    from platformdirs import PlatformDirs

    dirs = PlatformDirs("velollm", appauthor=False)
    return Paths(dirs.user_config_path, dirs.user_data_path, dirs.user_cache_path)


def data_dir(name: str) -> Path:
    """A directory that ships with the program: ``configs`` or ``workloads``.

    In an installed wheel it lies inside the package; in a source tree, at the repository's root.
    """
    inside = _PACKAGE / "_data" / name
    if inside.is_dir():
        return inside
    root = _PACKAGE.parent.parent
    tree = root / "benchmarks" / "workloads" if name == "workloads" else root / name
    if tree.is_dir():
        return tree
    raise VeloError(
        f"the program's own directory '{name}' is missing",
        "install VeloLLM again: `pipx install --force .` in its source tree",
    )


def replace_file(path: Path, text: str) -> None:
    """Write a file of our own data, whole or not at all, even where two do it at once. Raises `OSError`."""
    part = path.with_name(f".{path.name}.{os.urandom(4).hex()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def try_lock(fd: int) -> bool:
    """Take the only lock on an open file, without waiting; closing it, or the process's end, lets go of it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def ensure_dir(path: Path) -> Path:
    """Make a directory of the user's, with parents; a refusal becomes a `VeloError`."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VeloError(
            f"cannot make the directory {path}: {error.strerror or error}",
            "set VELOLLM_HOME to a directory that you may write to",
        ) from error
    return path
