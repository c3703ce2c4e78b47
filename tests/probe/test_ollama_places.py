"""Who keeps a server running, where its log is, who calls it."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.probe.ollama_listen import other_clients, parse_network, read_listening
from velollm.probe.ollama_log_place import app_logs, read_server_log, read_tail
from velollm.probe.ollama_manage import (
    Service,
    is_boxed,
    parse_environment_file,
    parse_properties,
    parse_unit,
    read_service,
)
from velollm.probe.source import TextSource

SHOW = (
    "systemctl show ollama.service --no-pager -p "
    "LoadState,ActiveState,UnitFileState,MainPID,User,Environment,EnvironmentFiles,UnsetEnvironment,NeedDaemonReload,"
    "FragmentPath"
)
JOURNAL = "journalctl -u ollama.service -n 20000 -o cat --no-pager --quiet"
UNIT = """LoadState=loaded
ActiveState=active
MainPID=812
User=ollama
Environment=PATH=/usr/bin "OLLAMA_ORIGINS=a b" OLLAMA_NUM_PARALLEL=2
EnvironmentFiles=/etc/default/ollama (ignore_errors=yes)
EnvironmentFiles=/etc/secret (ignore_errors=no)
NeedDaemonReload=no
"""


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("0::/system.slice/ollama.service\n", ("ollama.service", False)),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/ollama.service\n", ("ollama.service", True)),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/app-foot-1.scope\n", None),
        ("0::/user.slice/user-1000.slice/session-3.scope\n", None),
        ("1:name=systemd:/system.slice/snap.ollama.listener.service\n", ("snap.ollama.listener.service", False)),
        ("0::/\n", None),
        ("", None),
    ],
)
def test_the_unit_of_a_process(text: str, unit: tuple[str, bool] | None) -> None:
    assert parse_unit(text) == unit


def test_a_container_is_one_that_we_are_not_in() -> None:
    box = "0::/system.slice/docker-0123.scope\n"
    assert is_boxed(box, "0::/user.slice/session-1.scope\n")
    assert not is_boxed(box, box)
    assert not is_boxed("0::/system.slice/ollama.service\n", "0::/\n")


def test_a_service_and_what_it_sets() -> None:
    source = TextSource({"/etc/default/ollama": "OLLAMA_NUM_PARALLEL=4\n# none\n"}, {SHOW: UNIT})
    service = read_service(source, "ollama.service")
    assert service == Service(
        unit="ollama.service",
        state="active",
        main_pid=812,
        user="ollama",
        needs_reload=False,
        configured={
            "systemctl show ollama.service": {
                "PATH": "/usr/bin",
                "OLLAMA_ORIGINS": "a b",
                "OLLAMA_NUM_PARALLEL": "2",
            },
            "/etc/default/ollama": {"OLLAMA_NUM_PARALLEL": "4"},
        },
        unreadable_files=("/etc/secret",),
    )


def test_what_a_unit_takes_away_is_not_set() -> None:
    text = f"{UNIT}UnsetEnvironment=OLLAMA_NUM_PARALLEL OTHER=1\n"
    source = TextSource({"/etc/default/ollama": "OLLAMA_NUM_PARALLEL=4\n"}, {SHOW: text})
    service = read_service(source, "ollama.service")
    assert service is not None
    assert service.configured == {"systemctl show ollama.service": {"PATH": "/usr/bin", "OLLAMA_ORIGINS": "a b"}}


def test_no_such_service() -> None:
    assert read_service(TextSource(commands={SHOW: "LoadState=not-found\nMainPID=0\n"}), "ollama.service") is None
    assert read_service(TextSource(), "ollama.service") is None


@given(st.text(max_size=200))
def test_no_text_of_systemd_breaks_the_parsers(text: str) -> None:
    parse_properties(text)
    parse_unit(text)
    parse_environment_file(text)


def test_the_journal_of_a_service() -> None:
    service = Service("ollama.service", main_pid=7)
    read = read_server_log(
        TextSource(commands={JOURNAL: "line\n"}), "http://127.0.0.1:11434", 7, service, {}, Path("/none")
    )
    assert (read.place, read.text, read.unread) == ("journal of ollama.service", "line\n", None)
    refused = read_server_log(TextSource(), "http://127.0.0.1:11434", 7, service, {}, Path("/none"))
    assert refused.text is None
    assert refused.unread is not None
    assert "systemd-journal" in refused.unread.help


def test_the_file_that_standard_error_goes_to(tmp_path: Path) -> None:
    file = tmp_path / "serve.log"
    file.write_text("hello\n")
    links = tmp_path / "proc" / "9" / "fd"
    links.mkdir(parents=True)
    (links / "2").symlink_to(file)
    read = read_server_log(TextSource(), "http://127.0.0.1:11434", 9, None, {}, tmp_path, tmp_path / "proc")
    assert (read.place, read.text) == (str(file), "hello\n")


def test_a_terminal_is_no_log(tmp_path: Path) -> None:
    links = tmp_path / "proc" / "9" / "fd"
    links.mkdir(parents=True)
    (links / "2").symlink_to("/dev/pts/77777")
    read = read_server_log(TextSource(), "http://127.0.0.1:11434", 9, None, {}, tmp_path, tmp_path / "proc")
    assert read.unread is not None
    assert "a terminal" in read.unread.why


def test_the_apps_log_only_where_it_is_of_this_server(tmp_path: Path) -> None:
    path = app_logs({}, tmp_path, "darwin")[0]
    path.parent.mkdir(parents=True)
    listening = 'msg="Listening on 127.0.0.1:11434 (version 0.33.0)"'
    path.write_text(f"time=2026-01-02T12:00:00.000Z level=INFO source=routes.go:1 {listening}\n")
    of = {
        port: read_server_log(TextSource(), f"http://127.0.0.1:{port}", None, None, {}, tmp_path).place
        for port in (11434, 12000)
    }
    assert of == {11434: str(path), 12000: None}
    assert app_logs({"LOCALAPPDATA": "C"}, tmp_path, "win32")[0].name == "server.log"
    assert app_logs({}, tmp_path, "win32") == []


def test_the_tail_begins_with_a_whole_line(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_text("first\nsecond\nthird\n")
    assert read_tail(file) == "first\nsecond\nthird\n"
    assert read_tail(file, 10) == "third\n"
    assert read_tail(tmp_path) is None
    assert read_tail(tmp_path / "none") is None
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert read_tail(pipe) is None  # and no waiting for a writer


def test_own_addresses_and_containers_are_not_other_machines() -> None:
    own = [ipaddress.ip_network("192.168.1.5/32"), ipaddress.ip_network("172.17.0.0/16")]
    clients = ("192.168.1.5", "172.17.0.2", "192.168.1.9", "fe80::1%eth0", "::ffff:172.17.0.3", "junk")
    assert other_clients(clients, own) == ("192.168.1.9", "fe80::1%eth0")


def test_networks_of_interfaces() -> None:
    assert str(parse_network("172.17.0.1", "255.255.0.0")) == "172.17.0.0/16"
    assert str(parse_network("fd00::1%br0", "ffff:ffff:ffff:ffff::")) == "fd00::/64"
    assert str(parse_network("10.0.0.1", None)) == "10.0.0.1/32"
    assert parse_network("aa:bb:cc:dd:ee:ff", None) is None


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_address_breaks_it(address: str, mask: str) -> None:
    parse_network(address, mask)
    other_clients([address], [])


def test_listening_sockets_of_this_machine() -> None:
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        assert read_listening(server.getsockname()[1]) == ("127.0.0.1",)
