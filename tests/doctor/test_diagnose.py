"""All checks together."""

from __future__ import annotations

from velollm.doctor.base import Check, Evidence, Finding, Severity
from velollm.doctor.diagnose import diagnose, load_checks, worst_three
from velollm.facts import Facts

HEALTHY = Facts.model_validate(
    {
        "os": "linux",
        "cpu": {
            "physical_cores": 8,
            "logical_cores": 16,
            "online_cores": 16,
            "usable_cores": 16,
            "usable_physical_cores": 8,
            "affinity": "0-15",
            "governor": "powersave",
        },
        "memory": {
            "total_bytes": 32_000_000_000,
            "available_bytes": 21_000_000_000,
            "swap_total_bytes": 8_000_000_000,
            "swap_free_bytes": 7_000_000_000,
        },
        "cgroup": {"version": 2},
        "power": {"on_battery": False},
        "thermal": {"throttled_since_boot": False},
        "load": {"busy_cores_now": 0.2, "busy_per_cpu": [0.05] * 4 + [0.0] * 12, "load_15m": 0.9},
        "gpus": [{"vendor": "nvidia", "driver_version": "580.82.07", "vram_bytes": 12_884_901_888}],
        "devices": {"pci:nvidia": ["0000:01:00.0"], "nvidia": ["/dev/nvidia0"]},
        "environment": {"OLLAMA_HOST": "127.0.0.1", "PATH": "/usr/bin"},
    }
)


def fake(name: str, *severities: Severity) -> Check:
    findings = [Finding(name, s, f"{name} {s}", (Evidence("here", "so"),), "mend it") for s in severities]
    return Check(name, name, "critical", False, lambda facts: findings)


def test_a_healthy_machine_has_nothing_but_notes() -> None:
    assert [found.title for found in diagnose(HEALTHY) if found.severity != "note"] == []


def test_names_of_checks_are_unique_words() -> None:
    names = [check.name for check in load_checks()]
    assert len(set(names)) == len(names) >= 12
    assert all(name == name.lower() and not any(char.isdigit() for char in name) for name in names)


def test_the_gravest_come_first_then_by_name() -> None:
    found = diagnose(Facts(), [fake("b", "note", "warning"), fake("a", "warning"), fake("c", "critical")])
    assert [finding.title for finding in found] == ["c critical", "a warning", "b warning", "b note"]


def test_the_worst_three_are_of_three_checks_and_never_notes() -> None:
    checks = [fake("a", "warning", "critical"), fake("b", "warning"), fake("c", "warning"), fake("d", "warning")]
    assert [f.title for f in worst_three(diagnose(Facts(), checks))] == ["a critical", "b warning", "c warning"]
    assert worst_three(diagnose(Facts(), [fake("a", "note")])) == []


def test_evidence_names_the_place_it_was_read_from() -> None:
    facts = HEALTHY.model_copy(
        update={
            "power": Facts.model_validate({"power": {"on_battery": True}}).power,
            "sources": {"power.on_battery": "/sys/class/power_supply/AC/online"},
        }
    )
    battery = next(found for found in diagnose(facts) if found.check == "battery")
    assert battery.evidence[0].where == "/sys/class/power_supply/AC/online"
