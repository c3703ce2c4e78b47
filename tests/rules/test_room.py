"""How much memory of which device a model may take."""

from __future__ import annotations

from typing import Any

import pytest

from velollm.facts import Facts, MemoryFacts, ServerFacts
from velollm.knobs import Profile, Wish
from velollm.rules.room import Room, as_idle, computes_on_cpu, fit_target_bytes, machine_of, main_memory
from velollm.units import GIB, MIB

GB = 10**9
WISH = Wish(Profile("test", "", 4096, 1, "chat", "decode"), backend="ollama")
CARD: dict[str, Any] = {"vendor": "nvidia", "integrated": False, "unified_memory": False}


def machine(*gpus: dict[str, Any], **fields: Any) -> Facts:
    values = {"memory": {"total_bytes": 64 * GIB, "available_bytes": 40 * GIB}, "gpus": list(gpus), **fields}
    return Facts.model_validate(values)


def test_main_memory_is_the_least_of_what_is_known() -> None:
    def room(**bytes_: int) -> int | None:
        found = main_memory(Facts(memory=MemoryFacts.model_validate(bytes_)), WISH)
        return found.available_bytes if found else None

    assert room(available_bytes=9, limit_bytes=20, limit_used_bytes=15) == 5
    assert room(available_bytes=9, limit_bytes=20) == 9
    assert room(limit_bytes=20, limit_used_bytes=30) == 0
    assert room(available_bytes=9, allowed_bytes=4) == 4
    assert room(total_bytes=100, allowed_bytes=50) is None


@pytest.mark.parametrize(("available", "usable"), [(512 * MIB, 384 * MIB), (100 * GIB, 90 * GIB - 512 * MIB), (0, 0)])
def test_the_margin_is_a_tenth_and_half_a_gib_but_never_more_than_a_quarter(available: int, usable: int) -> None:
    found = main_memory(Facts(memory=MemoryFacts(available_bytes=available)), WISH)
    assert found is not None
    assert found.usable_bytes == usable


def test_what_stays_free_is_never_more_than_there_is() -> None:
    assert Room("", 100, 200).usable_bytes == 0


def test_a_card_keeps_room_for_fit_and_driver() -> None:
    (card,) = machine_of(machine({**CARD, "vram_bytes": 24 * GIB, "vram_free_bytes": 20 * GIB}), WISH).cards
    assert (card.available_bytes, card.usable_bytes) == (20 * GIB, 20 * GIB - (1024 + 457) * MIB)
    assert "--fit" in card.why


@pytest.mark.parametrize(("text", "mib"), [("2048", 2048), ("512,1536", 1536), ("many", 1024), ("", 1024)])
def test_the_users_own_fit_target(text: str, mib: int) -> None:
    for server in (ServerFacts(environment={"LLAMA_ARG_FIT_TARGET": text}), ServerFacts()):
        target = fit_target_bytes(Facts(server=server))
        assert target == (mib if server.environment else 1024) * MIB


def test_the_roomiest_card_comes_first_whatever_their_order() -> None:
    small, large = {**CARD, "vram_free_bytes": 8 * GIB}, {**CARD, "vram_free_bytes": 24 * GIB}
    one, other = machine_of(machine(small, large), WISH), machine_of(machine(large, small), WISH)
    assert one == other
    assert [card.available_bytes for card in one.cards] == [24 * GIB, 8 * GIB]


def test_of_two_vendors_the_one_with_more_memory() -> None:
    amd = {**CARD, "vendor": "amd", "vram_free_bytes": 16 * GIB}
    nvidia = {**CARD, "vram_free_bytes": 10 * GIB}
    assert len(machine_of(machine(nvidia, amd, nvidia), WISH).cards) == 2
    assert len(machine_of(machine(nvidia, amd), WISH).cards) == 1


def test_a_card_of_unknown_size_is_a_fact_that_is_lacking() -> None:
    assert machine_of(machine(CARD), WISH).lacked == ("gpus.vram_bytes",)


@pytest.mark.parametrize(("total_gib", "metal_gib"), [(24, 16), (64, 48), (192, 144)])
def test_what_metal_may_use(total_gib: int, metal_gib: int) -> None:
    memory = {"total_bytes": total_gib * GIB, "available_bytes": total_gib * GIB}
    found = machine_of(Facts.model_validate({"os": "macos", "unified_memory": True, "memory": memory}), WISH)
    assert found.shared
    assert found.cards[0].available_bytes == metal_gib * GIB


def test_a_limit_that_somebody_gave_metal() -> None:
    gpu = {"vendor": "apple", "integrated": True, "unified_memory": True, "largest_usable_bytes": 20 * GIB}
    assert machine_of(machine(gpu, os="macos"), WISH).cards[0].available_bytes == 20 * GIB


@pytest.mark.parametrize(
    ("gpu", "environment", "on_cpu"),
    [
        ({"vendor": "intel"}, {}, True),
        ({"vendor": "intel"}, {"OLLAMA_IGPU_ENABLE": "1"}, False),
        ({"vendor": "nvidia"}, {}, False),
        ({"vendor": "nvidia"}, {"OLLAMA_IGPU_ENABLE": "0"}, True),
        ({"vendor": "amd", "gfx": "gfx1151"}, {}, False),
        ({"vendor": "amd", "name": "AMD Radeon 8060S Graphics"}, {}, False),
        ({"vendor": "amd", "gfx": "gfx1036"}, {}, True),
    ],
)
def test_integrated_gpus_that_the_engine_uses(gpu: dict[str, Any], environment: dict[str, str], on_cpu: bool) -> None:
    found = machine({**gpu, "integrated": True, "unified_memory": True}, server={"environment": environment})
    assert computes_on_cpu(found, WISH) is on_cpu


def test_what_the_servers_own_models_hold_makes_room() -> None:
    card = {**CARD, "vram_bytes": 24 * GIB, "vram_free_bytes": 4 * GIB}
    loaded = [{"name": "m", "size_bytes": 22 * GIB, "gpu_bytes": 19 * GIB}]
    server = {"engine": "ollama", "loaded": loaded}
    found = machine_of(machine(card, server=server), WISH)
    assert found.cards[0].available_bytes == 23 * GIB
    assert found.main is not None
    assert found.main.available_bytes == 43 * GIB
    other = machine_of(machine(card, server={**server, "engine": "vllm"}), WISH)
    assert other.cards[0].available_bytes == 4 * GIB


def test_bandwidths_are_those_of_facts_or_table() -> None:
    told = machine_of(machine({**CARD, "vram_free_bytes": GIB, "memory_bandwidth_bytes_per_s": 7 * GB}), WISH)
    assert told.card_bytes_per_s == 7 * GB
    known = {**CARD, "name": "NVIDIA GeForce RTX 3090", "vram_bytes": 24 * GIB}
    assert machine_of(machine(known), WISH).card_bytes_per_s == pytest.approx(936 * GB, rel=0.01)
    assert machine_of(machine(known, {**CARD, "name": "?", "vram_bytes": GIB}), WISH).card_bytes_per_s is None


def test_a_described_machine_is_idle() -> None:
    described = Facts(memory=MemoryFacts(total_bytes=16 * GB))
    assert main_memory(described, WISH) is None
    found = main_memory(as_idle(described), WISH)
    assert found is not None
    assert found.available_bytes == 16 * GB
