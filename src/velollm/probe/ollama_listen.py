"""Addresses that a server listens on, and who calls it from outside this machine."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
# Bridges that containers and virtual machines of this machine are on.
_BRIDGES = ("docker", "br-", "veth", "podman", "cni", "virbr", "lxc", "lxd", "incus", "vEthernet")


def read_listening(port: int) -> tuple[str, ...] | None:
    """Addresses on which something listens at this port; None where the system does not tell (macOS without root)."""
    import psutil

    try:
        sockets = psutil.net_connections("tcp")
    except (psutil.Error, OSError):
        return None
    found = {c.laddr.ip for c in sockets if c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port}
    return tuple(sorted(found)) or None


def read_own_networks() -> list[_Network]:
    """This machine's addresses, and the whole networks of its bridges for containers and virtual machines."""
    import psutil

    found: list[_Network] = []
    for name, addresses in psutil.net_if_addrs().items():
        for address in addresses:
            mask = address.netmask if name.startswith(_BRIDGES) else None
            network = parse_network(address.address, mask)
            if network is not None:
                found.append(network)
    return found


def parse_network(address: str, mask: str | None) -> _Network | None:
    """A network of an interface's address and mask; the address alone without a mask, None for other kinds."""
    address = address.partition("%")[0]
    try:
        if mask and ":" in mask:  # IPv6 masks are written as addresses.
            mask = str(bin(int(ipaddress.IPv6Address(mask))).count("1"))
        return ipaddress.ip_network(f"{address}/{mask}" if mask else address, strict=False)
    except ValueError:
        return None


def other_clients(clients: Iterable[str], own: Iterable[_Network] | None = None) -> tuple[str, ...]:
    """Of the addresses that called a server, those of other machines."""
    networks = read_own_networks() if own is None else list(own)
    return tuple(client for client in clients if not _is_own(client, networks))


def _is_own(client: str, networks: Iterable[_Network]) -> bool:
    try:
        address = ipaddress.ip_address(client.partition("%")[0])
    except ValueError:
        return True
    mapped = getattr(address, "ipv4_mapped", None) or address
    return mapped.is_loopback or any(mapped.version == n.version and mapped in n for n in networks)
