"""A captured machine: a folder of texts that kernel files and tools gave.

``proc_meminfo.txt`` is the file `/proc/meminfo`; ``nvidia-smi_-q.txt`` is the output of `nvidia-smi -q`;
a file with lines ``/path:value`` is what `grep . FILES` printed of many small files; a ``.log`` file is a
log of an inference server. Slashes and blanks are both written ``_``, so a name is compared in that form.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from velollm.errors import VeloError
from velollm.probe.source import TextSource

_FILE_LIMIT_BYTES = 8 * 1024 * 1024
_FILE_COUNT_LIMIT = 4096
_SUFFIXES = (".txt", ".csv", ".json", ".xml", ".log", ".out")
_ROOTS = ("proc", "sys", "etc", "run", "dev", "var", "boot")
# A colon inside a path: PCI addresses and ACPI names (`0004:05:00.0/`, `PNP0C0A:00/`).
_GREP_LINE = re.compile(r"(/(?:[^:\n]|:(?=[0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2})?(?:\.[0-9A-Fa-f])?/))*):(.*)")
_LOG_MARKS = re.compile(r"level=(?:INFO|WARN|DEBUG|ERROR) source=|^system_info: n_threads|inference compute", re.M)


class CaptureSource(TextSource):
    """Texts of another machine.

    ``logs`` are server logs by file name; ``command_lines`` the whole command line of a command, where it is noted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.logs: dict[str, str] = {}
        self.command_lines: dict[str, str] = {}
        self._names: dict[str, str] = {}

    def add_name(self, name: str, text: str) -> None:
        """Add a text whose name stands for a path or for a command (blanks and slashes written ``_``)."""
        self._names[name] = text
        if name.split("_", 1)[0] in _ROOTS:
            self.files.setdefault(_path_of(name), text)
        else:
            self.commands.setdefault(_command_of(name), text)

    def read(self, path: str) -> str | None:
        text = self.files.get(path)
        return text if text is not None else self._names.get(path.lstrip("/").replace("/", "_"))

    def glob(self, pattern: str) -> list[str]:
        return sorted({*super().glob(pattern), *self._glob_names(pattern)})

    def run(self, argv: Sequence[str]) -> str | None:
        text = super().run(argv)
        if text is not None:
            return text
        short = [word.split("=", 1)[0] for word in argv if not word.startswith("--format")]
        for words in (argv, short):
            name = "_".join(words).replace(" ", "_").replace("/", "_")
            if name in self._names:
                return self._names[name]
        return None

    def _glob_names(self, pattern: str) -> Iterator[str]:
        """Paths that match, of names in which the slashes of a path with `_` in it cannot be told."""
        pieces = re.split(r"(\*|\[[^]/]*\])", pattern.lstrip("/").replace("/", "_"))
        expression = re.compile(
            "".join("([^_]*)" if p == "*" else f"({p})" if p.startswith("[") else re.escape(p) for p in pieces)
        )
        wild = re.compile(r"\*|\[[^]/]*\]")
        for name in self._names:
            match = expression.fullmatch(name)
            if match is not None:
                groups = iter(match.groups())
                yield wild.sub(lambda _, groups=groups: next(groups), pattern)  # type: ignore[misc]


def read_capture(directory: Path) -> CaptureSource:
    """The texts of a captured machine.

    Raises `VeloError` where the directory cannot be read or holds no text of a machine.
    """
    try:
        paths = sorted(path for path in directory.iterdir() if path.is_file())
    except OSError as error:
        raise VeloError(
            f"cannot read the capture {directory}: {error.strerror or error}",
            "give a directory with captured text files, such as proc_cpuinfo.txt",
        ) from error
    source = CaptureSource()
    for path in paths[:_FILE_COUNT_LIMIT]:
        _add_file(source, path)
    if not (source.files or source.commands or source.logs):
        raise VeloError(
            f"the capture {directory} holds no text of a machine",
            "name each file after its path or command: proc_cpuinfo.txt, lscpu.txt, nvidia-smi_-q.txt",
        )
    return source


def _add_file(source: CaptureSource, path: Path) -> None:
    name = _stem(path.name)
    if name is None:
        return
    try:
        with path.open("rb") as file:
            text = file.read(_FILE_LIMIT_BYTES).decode("utf-8", "replace")
    except OSError as error:
        raise VeloError(
            f"cannot read {path}: {error.strerror or error}", "make the files of the capture readable"
        ) from error
    text = text.removeprefix("\ufeff")
    if name.endswith(".command"):  # It tells the whole command line of NAME, and is no text of the machine.
        source.command_lines[_command_of(name.removesuffix(".command"))] = text.strip()
        return
    if _is_grep_output(name, text):
        source.files.update(parse_grep_output(text))
        return
    if path.suffix == ".log" or _LOG_MARKS.search(text[:65536]):
        source.logs[path.name] = text
        return
    source.add_name(name, text)


def parse_grep_output(text: str) -> dict[str, str]:
    """Files by path, of ``path:value`` lines as `grep . FILES` prints them; several lines make one file."""
    lines: dict[str, list[str]] = {}
    for line in text.splitlines():
        match = _GREP_LINE.match(line)
        if match is not None:
            lines.setdefault(match.group(1), []).append(match.group(2))
    return {path: "\n".join(values) + "\n" for path, values in lines.items()}


def _is_grep_output(name: str, text: str) -> bool:
    if name.startswith("grep_"):
        return True
    head = [line for line in text[:4096].splitlines()[:8] if line.strip()]
    return bool(head) and all(re.match(r"/(?:proc|sys|etc|run|cgroup)/[^\s:]*:", line) for line in head)


def _stem(name: str) -> str | None:
    """Name without its ending; None for files that are not captured text."""
    if name.startswith(".") or name.lower() in ("readme", "readme.txt"):
        return None
    for suffix in _SUFFIXES:
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return None if re.search(r"\.(?:ya?ml|md|py|sh|gz|zip|tar|png|jpg)$", name) else name


def _path_of(name: str) -> str:
    """The likeliest path of a name: `/proc/mounts` also where it was piped through grep."""
    return "/" + re.sub(r"_grep_.*$", "", name).replace("_", "/")


def _command_of(name: str) -> str:
    return name.replace("_", " ").replace("system profiler", "system_profiler").replace("vm stat", "vm_stat")
