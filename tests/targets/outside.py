"""A machine whose programs answer what real ones printed, and that keeps what was asked of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from velollm.config import Paths
from velollm.facts import Facts, ServerFacts
from velollm.targets.environment import Ground
from velollm.targets.system import Done, System


class Programs:
    """``answers``: standard output by the whole command; a command that is not among them fails."""

    def __init__(self, answers: Mapping[str, str] | None = None) -> None:
        self.answers = dict(answers or {})
        self.asked: list[str] = []
        self.environs: list[Mapping[str, str] | None] = []

    def run(self, argv: Sequence[str], data: bytes | None, environ: Mapping[str, str] | None) -> Done:
        words = " ".join(argv)
        self.asked.append(words)
        self.environs.append(environ)
        if words in self.answers:
            return Done(0, self.answers[words])
        return Done(1, "", f"{argv[0]}: refused\n")


def system(
    root: Path,
    programs: Programs | None = None,
    *,
    platform: str = "linux",
    as_root: bool = False,
    terminal: bool = False,
    lacks: Sequence[str] = (),
) -> System:
    return System(
        run=(programs or Programs()).run,
        which=lambda name: None if name in lacks else f"/usr/bin/{name}",
        platform=platform,
        root=as_root,
        terminal=terminal,
        home=root / "home",
        etc=root / "etc",
        proc=root / "proc",
        environ={},
    )


def ground(root: Path, server: ServerFacts | None, machine: System, pid: int | None = None) -> Ground:
    paths = Paths(root / "velollm" / "config", root / "velollm" / "data", root / "velollm" / "cache")
    return Ground(Facts(server=server), paths, machine, pid)
