"""The report for a bug tracker: nothing of anybody's comes through."""

from __future__ import annotations

import ipaddress
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.shared import find_shared, shared_dir
from velollm.doctor.base import Evidence, Finding
from velollm.doctor.diagnose import diagnose
from velollm.facts import Facts
from velollm.probe.machine import probe_capture
from velollm.report.bug import SHOWN_VARIABLES, Cleaner, Identity, is_harmless, render_bug_report

_FOLDER = find_shared("machines")
NAMES = sorted(path.name for path in _FOLDER.iterdir() if path.is_dir()) if _FOLDER else []
PERSONAL = {
    "MAC address": re.compile(r"\b(?:[0-9a-fA-F]{2}[:-]){5}[0-9a-fA-F]{2}\b"),
    "UUID": re.compile(r"\b[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\b"),
    "long hexadecimal id": re.compile(r"\b[0-9a-fA-F]{16,}\b"),
    "home directory": re.compile(r"/home/|/Users/|/root\b|[A-Za-z]:\\\\"),
    "e-mail address": re.compile(r"\w@\w"),
    "serial number": re.compile(r"serial", re.IGNORECASE),
}


def addresses(text: str) -> list[str]:
    """Addresses of machines other than this one."""
    found = []
    for word in re.findall(r"[0-9a-fA-F.:]{6,}", text):
        try:
            address = ipaddress.ip_address(word.strip(".:"))
        except ValueError:
            continue
        if not address.is_loopback and not address.is_unspecified:
            found.append(word)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_captured_machine_leaves_nothing_personal(name: str) -> None:
    facts = probe_capture(shared_dir("machines") / name)
    text = render_bug_report(facts, diagnose(facts), "1.2.3", Identity())
    assert [kind for kind, pattern in PERSONAL.items() if pattern.search(text)] == []
    assert addresses(text) == []
    assert "## Findings" in text


def make_facts(secret: str, other: str, address: str) -> Facts:
    """A machine on which every text that a person chooses holds a secret."""
    home = f"/home/{secret}"
    variables = {
        "OLLAMA_MODELS": f"{home}/models",
        "OLLAMA_HOST": f"http://{address}:11434",
        "OLLAMA_API_KEY": secret,
        "OLLAMA_FLASH_ATTENTION": other,
        "OLLAMA_KV_CACHE_TYPE": f" '{other}' ",
        "OLLAMA_NUM_PARALLEL": other,
        "OLLAMA_KEEP_ALIVE": other,
        "LLAMA_ARG_SPEC_TYPE": f"ngram-mod,{other}",
        "LLAMA_ARG_THREADS": other,
        "LLAMA_ARG_DRAFT_MAX": secret,
        "LLAMA_API_KEY": other,
        "CUDA_VISIBLE_DEVICES": "GPU-8f1c2b34-1234-5678-9abc-def012345678",
    }
    server: dict[str, Any] = {
        "engine": "ollama",
        "version": "0.29.1",
        "generation": "runner",
        "url": f"http://{address}:11434",
        "reachable": True,
        "pid": 4711,
        "user": secret,
        "unit": f"{secret}.service",
        "managed": "systemd",
        "needs_reload": True,
        "binary": f"{home}/bin/ollama",
        "argv": [f"{home}/bin/ollama", "serve"],
        "environment": {**variables, "OLLAMA_KEEP_ALIVE": "5s"},
        "logged_environment": variables,
        "configured": {f"{home}/my {other}.conf": {"OLLAMA_NUM_PARALLEL": secret}},
        "keep_alive_s": 5,
        "listens": ["0.0.0.0", address],
        "log": f"{home}/{other}/server.log",
        "models_dir": f"{home}/models",
        "installed": [f"{other}-private:7b", f"hub.example.com/{secret}/m:latest"],
        "loaded": [{"name": f"{other}-private:7b", "size_bytes": 100, "gpu_bytes": 40, "argv": ["-m", home]}],
        "context_tokens": 512,
        "slots": 1,
        "gpu_layers": 4,
        "total_layers": 9,
        "threads": 99,
        "activity": {
            "loads": 2,
            "failed_loads": 2,
            "failures": [
                {"model": f"{other}-private:7b, b", "reason": f"error loading model '{home}/a b.gguf': out of memory"},
                {"model": f"{home}/models/{secret}", "reason": None},
            ],
            "clients": [address],
            "truncated": 3,
            "longest_truncated_tokens": 6011,
            "requests": 9,
            "overlapping_requests": 4,
            "reload_gaps_s": [700.0, 800.0, 900.0],
        },
        "truncation": {"model": f"{other}-private:7b", "context_tokens": 512, "prompt_tokens": 9, "kept_tokens": 4},
        "unreadable": [{"what": "models", "why": f"{home}/models may not be read", "help": f"usermod {secret}"}],
    }
    return Facts.model_validate(
        {
            "os": "linux",
            "cpu": {"model_name": "A Processor", "usable_cores": 4, "logical_cores": 4, "usable_physical_cores": 4},
            "gpus": [{"vendor": "nvidia", "name": "A GPU", "integrated": False, "vram_bytes": 8 << 30}],
            "environment": variables,
            "server": server,
            "model": {"name": f"{other}-private:7b", "path": f"{home}/x.gguf"},
            "sources": {"server.activity": f"{home}/{other}/server.log", "server.loaded": f"http://{address}:11434/ps"},
        }
    )


# Letters that no text of ours has in this order, so that what is found is what was planted.
SECRETS = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_.", min_size=2, max_size=14).map(lambda text: f"zq{text}q")
ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).filter(
    lambda found: not found.is_loopback and not found.is_unspecified
)


@settings(max_examples=60)
@given(SECRETS, SECRETS, ADDRESSES)
def test_what_is_planted_does_not_come_out(
    secret: str, other: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address
) -> None:
    facts = make_facts(secret, other, str(address))
    findings = diagnose(facts)
    assert len(findings) > 12
    text = render_bug_report(facts, findings, "1.2.3", Identity((secret,), (other,), f"/home/{secret}")).lower()
    assert secret not in text
    assert other not in text
    assert str(address) not in text
    assert not re.search(r"gpu-8f1c|/home/", text)


@settings(max_examples=60)
@given(SECRETS, SECRETS, ADDRESSES)
def test_a_finding_of_any_words_is_cleaned(
    secret: str, other: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address
) -> None:
    words = f"{secret} {other.upper()} at {address} in /srv/{secret}/x, mail a@{other}.org, C:\\Users\\{other}\\y"
    finding = Finding("a-check", "warning", words, (Evidence(f"/home/{secret}/log", words),), f"ssh {secret}@{other}")
    text = render_bug_report(Facts(), [finding], "1", Identity((secret,), (f"{other}.lan",), None)).lower()
    assert secret not in text
    assert other not in text
    assert str(address) not in text


def test_a_line_of_the_kernels_log_does_not_name_a_program_of_somebody() -> None:
    line = "NVRM: Xid (PCI:0000:01:00): 79, pid=4711, name=zqsecret-tool, GPU has fallen off the bus."
    facts = Facts.model_validate({"os": "linux", "kernel": {"resumes": 1, "gpu_errors": [line]}})
    findings = diagnose(facts)
    assert any(line in seen.value for finding in findings for seen in finding.evidence)
    text = render_bug_report(facts, findings, "1", Identity())
    assert "the kernel lost a GPU" in text
    assert "zqsecret" not in text


def test_what_helps_stays() -> None:
    facts = Facts.model_validate(
        {
            "os": "linux",
            "environment": {"OLLAMA_NUM_PARALLEL": "4", "OLLAMA_KV_CACHE_TYPE": "q8_0", "OLLAMA_HOST": "box.lan"},
            "server": {"engine": "ollama", "version": "0.33.0", "installed": ["mine:1b"], "context_tokens": 4096},
            "sources": {"server.version": "http://127.0.0.1:11434/api/version"},
        }
    )
    finding = Finding(
        "x", "note", "mine:1b on box.lan", (Evidence("/proc/stat", "http://127.0.0.1:11434/api/ps"),), "ollama rm mine"
    )
    text = render_bug_report(facts, [finding], "1.2.3", Identity(("jane",), ("box",)))
    assert "| OLLAMA_NUM_PARALLEL (shell) | 4 |" in text
    assert "| OLLAMA_KV_CACHE_TYPE (shell) | q8_0 |" in text
    assert "| engine | ollama 0.33.0 |" in text
    assert "<model 1> on <hidden>" in text
    assert "/proc/stat: http://127.0.0.1:11434/api/ps" in text
    assert "OLLAMA_HOST" not in text


def test_a_variable_with_words_of_somebody_is_only_said_to_be_set() -> None:
    facts = Facts(environment={"OLLAMA_KEEP_ALIVE": "my password", "OLLAMA_LOAD_TIMEOUT": "5m0s"})
    text = render_bug_report(facts, [], "1", Identity())
    assert "| OLLAMA_KEEP_ALIVE (shell) | (set) |" in text
    assert "| OLLAMA_LOAD_TIMEOUT (shell) | 5m0s |" in text
    assert "None." in text


@pytest.mark.parametrize("text", ["4", "-1", "5m0s", "1.5h", "q8_0", "0,1", "/proc/stat", "--port", "true", ""])
def test_words_of_nobody(text: str) -> None:
    assert is_harmless(text)


@pytest.mark.parametrize("text", ["jane", "/srv/x", "llama3", "sk-1234abcd", "10.0.0.7", "4;jane"])
def test_words_of_somebody(text: str) -> None:
    assert not is_harmless(text)


def test_no_variable_that_holds_a_key_a_path_or_an_address_is_shown() -> None:
    assert not [
        n for n in SHOWN_VARIABLES if re.search(r"KEY$|TOKEN|SECRET|HOST|ORIGIN|OLLAMA_MODELS|_MODEL$|PROXY", n)
    ]


@given(st.text(max_size=80))
def test_any_text_is_cleaned_to_one_line(text: str) -> None:
    cleaned = Cleaner(Facts(), Identity(("jane",), ("box",)))(text)
    assert "\n" not in cleaned
    assert not re.search(r"(?<!\\)\|", cleaned)
