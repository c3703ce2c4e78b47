"""A server that the user's own systemd keeps: its drop-in."""

from __future__ import annotations

from velollm.targets.dropin import DropinPlace
from velollm.targets.environment import Ground


class UserUnitPlace(DropinPlace):
    """``~/.config/systemd/user/UNIT.d/velollm.conf``."""

    @classmethod
    def available(cls, ground: Ground) -> UserUnitPlace | None:
        server = ground.facts.server
        if server is None or server.managed != "systemd" or not server.unit or not server.user_unit:
            return None
        return cls(server.unit, ground.system.config / "systemd" / "user", server, ground.system)

    @property
    def _systemctl(self) -> tuple[str, ...]:
        return ("systemctl", "--user")


place = UserUnitPlace
