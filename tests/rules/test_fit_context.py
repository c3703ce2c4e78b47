"""What the context rule chooses fits, and no larger step would have."""

from __future__ import annotations

from pathlib import Path

import yaml
from hypothesis import given
from hypothesis import strategies as st

from velollm.facts import Facts, MemoryFacts, ModelFacts
from velollm.knobs import Profile, Wish
from velollm.models.memory import estimate_total_bytes
from velollm.rules.base import Skip
from velollm.rules.fit_context import decide
from velollm.rules.room import Room, card_memory, main_memory

SMALL = ModelFacts.model_validate(
    yaml.safe_load((Path(__file__).parent / "models.yaml").read_text(encoding="utf-8"))["small"]
)
GB = 10**9


def wish(context: int, slots: int, minimum: int, default: int) -> Wish:
    profile = Profile("test", "", context, slots, "chat", "decode", minimum_context_tokens=minimum)
    return Wish(profile, {"context_tokens": default, "slots": 1, "batch": 512, "ubatch": 512})


@given(
    available=st.integers(0, 40 * GB),
    context=st.integers(512, 200_000),
    slots=st.integers(1, 16),
    minimum=st.integers(512, 8192),
    default=st.sampled_from([4096, 32768, 262144]),
)
def test_the_choice_fits_and_only_memory_shrinks_it(
    available: int, context: int, slots: int, minimum: int, default: int
) -> None:
    facts = Facts(gpus=(), memory=MemoryFacts(available_bytes=available), model=SMALL)
    advice = decide(facts, {}, wish(context, slots, minimum, default))
    usable = Room("", available).usable_bytes
    smallest = estimate_total_bytes(SMALL, {"context_tokens": 512, "slots": 1})
    assert smallest is not None
    if isinstance(advice, Skip):
        assert smallest > usable
        return
    needed = estimate_total_bytes(SMALL, advice.values)
    assert needed is not None
    assert needed <= usable
    wanted = min(max(context, default), SMALL.context_train or 0)
    if dict(advice.values) == {"context_tokens": wanted, "slots": slots}:
        return
    whole = estimate_total_bytes(SMALL, {"context_tokens": wanted, "slots": slots})
    assert whole is not None
    assert whole > usable
    assert "memory holds no more" in advice.reason


def test_a_smaller_cache_format_holds_more() -> None:
    facts = Facts(gpus=(), memory=MemoryFacts(available_bytes=4 * GB), model=SMALL)
    asked = wish(131072, 1, 4096, 4096)
    plain = decide(facts, {"kv_type_k": "f16", "kv_type_v": "f16"}, asked)
    small = decide(facts, {"kv_type_k": "q4_0", "kv_type_v": "q4_0"}, asked)
    assert not isinstance(plain, Skip)
    assert not isinstance(small, Skip)
    assert small.values["context_tokens"] > plain.values["context_tokens"]  # type: ignore[operator]


def test_main_memory_is_the_least_of_what_is_known() -> None:
    def room(**bytes_: int) -> int | None:
        found = main_memory(MemoryFacts.model_validate(bytes_))
        return found.available_bytes if found else None

    assert room(available_bytes=9, limit_bytes=20, limit_used_bytes=15) == 5
    assert room(available_bytes=9, limit_bytes=20) == 9
    assert room(limit_bytes=20, limit_used_bytes=30) == 0
    assert room(available_bytes=9, allowed_bytes=4) == 4
    assert room(total_bytes=100, allowed_bytes=50) is None


def test_an_integrated_gpu_is_no_card() -> None:
    facts = Facts.model_validate({"gpus": [{"integrated": True, "unified_memory": True, "vram_bytes": 4 * GB}]})
    assert card_memory(facts) is None


def test_the_margin_is_a_tenth_and_half_a_gib_but_never_more_than_a_quarter() -> None:
    assert Room("", 512 * 2**20).usable_bytes == 384 * 2**20
    assert Room("", 100 * 2**30).usable_bytes == 90 * 2**30 - 512 * 2**20
    assert Room("", 0).usable_bytes == 0
