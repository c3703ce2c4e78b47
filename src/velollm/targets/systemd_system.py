"""A server that systemd keeps for the whole machine (Ollama's installer makes such a unit): its drop-in."""

from __future__ import annotations

from pathlib import Path

from velollm.targets.dropin import DropinPlace
from velollm.targets.environment import Ground
from velollm.targets.file import FileTarget
from velollm.targets.sudofile import SudoFileTarget


class SystemUnitPlace(DropinPlace):
    """``/etc/systemd/system/UNIT.d/velollm.conf``: `sudo` is for writing it and for the restart, for nothing else."""

    @classmethod
    def available(cls, ground: Ground) -> SystemUnitPlace | None:
        server = ground.facts.server
        if server is None or server.managed != "systemd" or not server.unit or server.user_unit:
            return None
        return cls(server.unit, ground.system.etc / "systemd" / "system", server, ground.system)

    def _target(self, path: Path) -> FileTarget:
        return FileTarget(path) if self._system.root else SudoFileTarget(path, system=self._system)

    @property
    def _systemctl(self) -> tuple[str, ...]:
        return ("systemctl",) if self._system.root else ("sudo", "systemctl")

    def refusal(self) -> str | None:
        if self._system.may_sudo():
            return None
        return f"only root may write {self.label} and restart {self.unit}"


place = SystemUnitPlace
