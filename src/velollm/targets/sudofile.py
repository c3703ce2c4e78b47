"""A settings file that another user owns: read as we are where that goes, written by way of `sudo`."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from velollm.errors import VeloError
from velollm.targets.base import Address, State
from velollm.targets.file import FileTarget, temporary_of
from velollm.targets.system import System, run_or_raise

_READ = 'if [ -e "$1" ]; then stat -c "%a %u %g" -- "$1" && cat -- "$1"; fi'
_MISSING = 'd=$(dirname -- "$1"); while [ ! -e "$d" ]; do printf "%s\\n" "$d"; d=$(dirname -- "$d"); done'
_HINT = "run the shown commands by hand, or run VeloLLM as a user who may use sudo"


class SudoFileTarget(FileTarget):
    """A file that only ``user`` (root, or a service's own user) may write.

    Each step is one command that a person could type; the new content is written beside the old one and renamed over
    it, as `FileTarget` does.
    """

    kind = "sudo-file"

    def __init__(
        self, path: Path, real: Path | None = None, *, user: str = "root", system: System | None = None
    ) -> None:
        super().__init__(path, real)
        self._user, self._system = user, system or System()

    @property
    def key(self) -> str:
        # The same place as a plain file of that path: who writes it makes no difference to what is there.
        return super().key

    def address(self) -> Address:
        return {**super().address(), "user": self._user}

    @classmethod
    def from_address(cls, address: Address) -> SudoFileTarget:
        plain = FileTarget.from_address(address)
        return cls(plain.path, plain.real, user=str(address.get("user", "root")))

    def read(self) -> State:
        try:
            return super().read()
        except VeloError as error:
            if not isinstance(error.__cause__, PermissionError):
                raise
        head, _, content = self._as_user(["sh", "-c", _READ, "sh", str(self.real)]).partition("\n")
        if not head:
            missing = self._as_user(["sh", "-c", _MISSING, "sh", str(self.real)]).splitlines()
            return State(None, missing_dirs=tuple(reversed(missing)))
        mode, uid, gid = head.split()
        return State(content.encode("utf-8", "surrogateescape"), int(mode, 8), int(uid), int(gid))

    def stage(self, state: State) -> None:
        if state.content is None:
            return
        before = self.read()
        self._made = before.missing_dirs
        try:
            for words, data in self._stage_steps(state, before):
                self._as_user(words, data)
        except BaseException:
            self._discard(self.real, self._made)
            raise
        self._staged = state

    def write(self, state: State) -> None:
        if state.content is not None and self._staged != state:
            self.stage(state)
        for words in self._write_steps(state):
            self._as_user(words)
        if state.content is None:
            self._remove_dirs(state.missing_dirs)
        self._staged, self._made = None, ()

    def commands(self, state: State) -> tuple[str, ...]:
        """What writing this state runs by way of `sudo`, as a person would type it."""
        before = self.read()
        lines: list[str] = []
        if state.content is not None:
            for words, data in self._stage_steps(state, before):
                lines.append(self._shown(words) + ("" if data is None else "  # with the new content as its input"))
        lines += [self._shown(words) for words in self._write_steps(state)]
        return tuple(lines)

    def _stage_steps(self, state: State, before: State) -> list[tuple[list[str], bytes | None]]:
        temporary = str(temporary_of(self.real))
        mode = state.mode if state.mode is not None else before.mode if before.mode is not None else 0o644
        uid, gid = (before.uid if state.uid is None else state.uid), (before.gid if state.gid is None else state.gid)
        steps: list[tuple[list[str], bytes | None]] = []
        if before.missing_dirs:
            steps.append((["mkdir", "-p", str(self.real.parent)], None))
        # Whatever stands under that name goes first: `tee` would write through a link.
        steps.append((["rm", "-f", temporary], None))
        steps.append((["tee", temporary], state.content))
        steps.append((["chmod", f"{mode:o}", temporary], None))
        if uid is not None and gid is not None:
            steps.append((["chown", f"{uid}:{gid}", temporary], None))
        steps.append((["sync", temporary], None))
        return steps

    def _write_steps(self, state: State) -> list[list[str]]:
        if state.content is None:
            return [["rm", "-f", str(self.real)]]
        return [["mv", "-fT", str(temporary_of(self.real)), str(self.real)]]

    def _discard(self, place: Path, made: tuple[str, ...]) -> None:
        self._staged, self._made = None, ()
        if os.path.lexists(temporary_of(place)) or not os.access(place.parent, os.X_OK):
            self._system.run(self._words(["rm", "-f", str(temporary_of(place))]), None, None)
        self._remove_dirs(made)

    def _remove_dirs(self, paths: tuple[str, ...]) -> None:
        if paths:
            words = ["rmdir", "--ignore-fail-on-non-empty", *reversed(paths)]
            self._system.run(self._words(words), None, None)

    def _words(self, words: list[str]) -> tuple[str, ...]:
        sudo = self._system.sudo
        if sudo is None:
            raise VeloError(f"only {self._user} may write {self.label}, and sudo is not here", _HINT)
        return (*sudo, *(["-u", self._user] if sudo and self._user != "root" else []), *words)

    def _shown(self, words: list[str]) -> str:
        return shlex.join(["sudo", *([] if self._user == "root" else ["-u", self._user]), *words])

    def _as_user(self, words: list[str], data: bytes | None = None) -> str:
        return run_or_raise(self._system.run, self._words(words), data, _HINT)


target = SudoFileTarget
