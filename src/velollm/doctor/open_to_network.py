"""A server that others can reach."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from velollm.doctor.base import Check, Finding, evidence
from velollm.doctor.mend import set_variable
from velollm.facts import Facts

_NAME = "open-to-network"
_WHY = "whoever reaches it may use, fill and delete your models"


def run(facts: Facts) -> Iterator[Finding]:
    """Finds a server that listens on every interface: whoever reaches it may use, fill and delete its models.

    Ollama asks for no password. With answered requests from other machines in its log it is a
    warning; else a note, for a firewall may stand in between. A container has to listen so, and is
    not looked at.
    """
    server = facts.server
    if server is None or server.remote or server.managed == "container" or facts.container:
        return
    open_ = [address for address in server.listens or () if not _is_loopback(address)]
    if not open_:
        return
    clients = server.activity.clients if server.activity else ()
    seen = [evidence(facts, "server.listens", f"listens on {', '.join(open_)}")]
    title = "the API listens beyond this machine, and asks for no password"
    if clients:
        more = f" and {len(clients) - 3} more" if len(clients) > 3 else ""
        seen.append(evidence(facts, "server.activity", f"answered {', '.join(clients[:3])}{more}"))
        count = "another machine" if len(clients) == 1 else f"{len(clients)} other machines"
        title = f"the API is open to the network without a password, and {count} used it"
    fix = set_variable(server, "OLLAMA_HOST", "127.0.0.1")
    yield Finding(_NAME, "warning" if clients else "note", title, tuple(seen), fix, _WHY)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return True


check = Check(_NAME, "API open beyond this machine", "warning", True, run)
