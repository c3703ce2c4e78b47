from __future__ import annotations

import socket
import sys
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fake_ollama import recorded
from velollm.backends.ollama_find import (
    ServerProcess,
    blob_of,
    child_url,
    choose_process,
    find_binary,
    find_url,
    is_listening,
    is_local,
    is_serve,
    models_dir_of,
    parse_host,
    parse_socket_uid,
    read_socket_user,
)

URL = "http://127.0.0.1:11434"
BLOB = "sha256-d8099aeed91d824af45f80a62507e966f3def5407d49ce5dd333ead49089808e"


@pytest.mark.parametrize(
    ("text", "url"),
    [
        (None, URL),
        ("", URL),
        ("  ", URL),
        ("127.0.0.1", URL),
        (":8080", "http://127.0.0.1:8080"),
        ("0.0.0.0", URL),
        ("0.0.0.0:5000", "http://127.0.0.1:5000"),
        ("example.org", "http://example.org:11434"),
        ("example.org:80", "http://example.org:80"),
        ("http://example.org", "http://example.org:80"),
        ("https://example.org", "https://example.org:443"),
        ("https://example.org:7000/", "https://example.org:7000"),
        ('"127.0.0.1:9000"', "http://127.0.0.1:9000"),
        ("'127.0.0.1:9000' ", "http://127.0.0.1:9000"),
        ("::1", "http://[::1]:11434"),
        ("[::1]", "http://[::1]:11434"),
        ("[::1]:9000", "http://[::1]:9000"),
        ("[::]:9000", "http://127.0.0.1:9000"),
        ("::", URL),
        ("host:notaport", URL),
        ("host:99999", URL),
    ],
)
def test_hosts(text: str | None, url: str) -> None:
    assert parse_host(text) == url


@given(st.text(max_size=30))
def test_no_host_raises(text: str) -> None:
    assert "://" in parse_host(text)


@pytest.mark.parametrize(
    ("url", "local"),
    [(URL, True), ("http://[::1]:1", True), ("http://localhost:1", True), ("http://10.0.0.2:1", False)],
)
def test_local_addresses(url: str, local: bool) -> None:
    assert is_local(url) is local


@pytest.mark.parametrize(
    ("argv", "serves"),
    [
        (["/usr/local/bin/ollama", "serve"], True),
        (["ollama", "start"], True),
        (["C:/Programs/Ollama.exe", "serve"], True),
        (["ollama", "run", "llama3"], False),
        (["ollama"], False),
        ([], False),
        (["velollm", "run", "--", "ollama", "serve"], False),
        (["python", "guard.py", "ollama", "serve"], False),
        (["llama-server", "serve"], False),
    ],
)
def test_command_lines(argv: list[str], serves: bool) -> None:
    assert is_serve(argv) is serves


def process(pid: int, port: int | None = None, environ: dict[str, str] | None = None) -> ServerProcess:
    return ServerProcess(pid, "/usr/bin/ollama", "me", ("ollama", "serve"), environ, port)


def test_the_listening_port_decides() -> None:
    found = [process(1, 11434, {}), process(2, 9000, {"OLLAMA_HOST": "127.0.0.1:9000"})]
    assert choose_process(found, "http://127.0.0.1:9000") == found[1]
    assert choose_process(found, URL) == found[0]


def test_without_ports_the_environment_decides() -> None:
    found = [process(1, None, {}), process(2, None, {"OLLAMA_HOST": ":9000"})]
    assert choose_process(found, "http://127.0.0.1:9000") == found[1]
    assert choose_process(found, URL) == found[0]


def test_a_server_that_may_not_be_read_is_taken_where_it_is_the_only_one() -> None:
    assert choose_process([process(1)], URL) == process(1)
    assert choose_process([process(1), process(2)], URL) is None
    assert choose_process([], URL) is None


def test_no_process_for_a_server_elsewhere() -> None:
    assert choose_process([process(1, 11434)], "http://10.0.0.2:11434") is None


def test_a_server_on_another_port_is_not_taken() -> None:
    assert choose_process([process(1, 9000, {"OLLAMA_HOST": ":9000"})], URL) is None


def test_variables_that_tune() -> None:
    environ = {"OLLAMA_NUM_PARALLEL": "2", "LLAMA_ARG_THREADS": "1", "HOME": "/root"}
    assert process(1, None, environ).tuning == {"OLLAMA_NUM_PARALLEL": "2", "LLAMA_ARG_THREADS": "1"}
    assert process(1).tuning is None


def test_places_of_a_recorded_model() -> None:
    modelfile = recorded("show")["body"]["modelfile"]
    assert models_dir_of(modelfile) == Path("/usr/share/ollama/.ollama/models")
    assert blob_of(modelfile) == Path("/usr/share/ollama/.ollama/models/blobs") / BLOB


def test_a_blob_in_a_directory_with_spaces() -> None:
    modelfile = f"# FROM old\n\nFROM /my models/blobs/{BLOB}\nTEMPLATE x\n"
    assert models_dir_of(modelfile) == Path("/my models")
    assert models_dir_of("FROM llama3:latest\n") is None
    assert blob_of("") is None


def test_the_childs_address() -> None:
    assert child_url(["llama-server", "--port", "1234"]) == "http://127.0.0.1:1234"
    assert child_url(["llama-server", "--port"]) is None
    assert child_url(["llama-server", "--port", "x"]) is None


def test_the_running_servers_program_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_binary() is None
    assert find_binary(ServerProcess(1, sys.executable, None, (), None)) == sys.executable
    assert find_binary(ServerProcess(1, "/nowhere/ollama", None, (), None)) is None


def listening(port: int | None, host: str | None = None) -> ServerProcess:
    environ = {} if host is None else {"OLLAMA_HOST": host}
    return ServerProcess(1, None, None, ("ollama", "serve"), environ, port=port)


@pytest.mark.parametrize(
    ("host", "answers", "processes", "found"),
    [
        ("box:1234", False, [listening(7)], ("http://box:1234", "OLLAMA_HOST")),
        (None, True, [listening(7)], ("http://127.0.0.1:11434", "Ollama's default address")),
        (" ", False, [listening(7)], ("http://127.0.0.1:7", "process list")),
        (None, False, [listening(7, "127.0.0.2:9")], ("http://127.0.0.2:7", "process list")),
        (None, False, [listening(7, "[::1]:9")], ("http://[::1]:7", "process list")),
        (None, False, [listening(7), listening(8)], ("http://127.0.0.1:11434", "Ollama's default address")),
        (None, False, [listening(None)], ("http://127.0.0.1:11434", "Ollama's default address")),
    ],
)
def test_where_the_server_is(
    host: str | None, answers: bool, processes: list[ServerProcess], found: tuple[str, str]
) -> None:
    assert find_url(host, lambda _: answers, lambda: processes) == found


def test_who_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert is_listening(f"http://127.0.0.1:{server.getsockname()[1]}")
    assert not is_listening("http://127.0.0.1:1")


SOCKETS = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:2CAA 00000000:0000 0A 00000000:00000000 00:00000000 00000000   997        0 21532 1 0 100 0 0 10 0
   1: 0100007F:2CAB 00000000:0000 01 00000000:00000000 00:00000000 00000000  1000        0 21533 1 0 100 0 0 10 0
   2: 00000000000000000000000001000000:2CAC 00000000000000000000000000000000:0000 0A 0:0 00:0 0  1001 0 1
"""


@pytest.mark.parametrize(("port", "uid"), [(11434, 997), (11435, None), (11436, 1001), (80, None)])
def test_who_owns_a_listening_socket(port: int, uid: int | None) -> None:
    assert parse_socket_uid(SOCKETS, port) == uid


@given(st.text(max_size=200), st.integers(min_value=1, max_value=65535))
def test_no_socket_table_raises(text: str, port: int) -> None:
    parse_socket_uid(text, port)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_our_own_socket_is_ours(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert read_socket_user(server.getsockname()[1]) == psutil.Process().username()
    assert read_socket_user(1, tmp_path) is None


def test_of_two_hidden_processes_the_sockets_owner_decides() -> None:
    hidden = [ServerProcess(n, None, user, ("ollama", "serve"), None) for n, user in ((1, "ada"), (2, "ollama"))]
    chosen = choose_process(hidden, URL, lambda port: "ollama" if port == 11434 else None)
    assert chosen is not None
    assert chosen.pid == 2
    assert choose_process(hidden, URL, lambda _: None) is None
