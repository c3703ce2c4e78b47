"""What the memory rule chooses fits, and more memory never gives less; whatever the model, devices and their order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from velollm.facts import Facts, GpuFacts, MemoryFacts, ModelFacts, PartFacts
from velollm.knobs import KnobValue, Profile, Wish
from velollm.models.memory import CPU, estimate_memory
from velollm.rules.base import Skip
from velollm.rules.fit_memory import Solution, decide, place_model
from velollm.rules.room import machine_of
from velollm.units import GIB, MIB

LAYERS = 8


def part(size: int) -> PartFacts:
    return PartFacts(bytes=size, matrices={"q4_k": size}, spans={"q4_k": (0, size)})


def model(architecture: str, expert_bytes: int = 0, **fields: Any) -> ModelFacts:
    """A model of 8 layers of 150 MiB each, and experts besides."""
    parts = [part(150 * MIB)] * LAYERS
    experts = [part(expert_bytes) if expert_bytes else PartFacts(bytes=0)] * LAYERS
    shape: dict[str, Any] = {
        "name": architecture,
        "architecture": architecture,
        "layers": LAYERS,
        "embedding_length": 2048,
        "heads": (16,) * LAYERS,
        "kv_heads": (8,) * LAYERS,
        "key_length": 128,
        "value_length": 128,
        "vocab": 32000,
        "context_train": 262144,
        "feed_forward_length": (8192,) * LAYERS,
        "recurrent_layers": (False,) * LAYERS,
        "parameters": 8 * (sum(p.bytes for p in [*parts, *experts]) + 200 * MIB) // 5,
        "tensor_bytes": sum(p.bytes for p in [*parts, *experts]) + 200 * MIB,
        "layer_parts": tuple(parts),
        "expert_parts": tuple(experts),
        "mtp_parts": (),
        "input_part": part(100 * MIB),
        "output_part": part(100 * MIB),
        "projector_bytes": 0,
        "tied_embeddings": False,
    }
    return ModelFacts.model_validate({**shape, **fields})


DENSE = model("llama")
EXPERTS = model("qwen3moe", 600 * MIB, experts=64, experts_used=4, expert_feed_forward_length=768)
SLIDING = model("gemma3", sliding_window=1024, sliding_layers=(True, True, True, False) * 2)
MODELS = (DENSE, EXPERTS, SLIDING)
models = st.sampled_from(MODELS)
sizes = st.integers(0, 12 * GIB)
cards = st.lists(sizes, max_size=3)


def facts(of: ModelFacts, cards_free: list[int], main: int) -> Facts:
    gpus = tuple(
        GpuFacts(vendor="nvidia", integrated=False, unified_memory=False, vram_bytes=24 * GIB, vram_free_bytes=free)
        for free in cards_free
    )
    return Facts(gpus=gpus, memory=MemoryFacts(total_bytes=64 * GIB, available_bytes=main), model=of)


def wish(context: int = 16384, slots: int = 1, minimum: int = 4096, **pins: KnobValue) -> Wish:
    profile = Profile("test", "", context, slots, "chat", "decode", minimum_context_tokens=minimum)
    defaults: dict[str, KnobValue] = {"context_tokens": 4096, "slots": 1, "batch": 2048, "ubatch": 2048}
    return Wish(profile, defaults, pins, "ollama")


wishes = st.builds(
    wish,
    context=st.sampled_from([4096, 16384, 50_000, 131_072]),
    slots=st.integers(1, 6),
    minimum=st.sampled_from([1024, 4096]),
)


def solve(facts: Facts, wish: Wish) -> Solution:
    assert facts.model is not None
    found = place_model(facts, facts.model, wish)
    assert isinstance(found, Solution)
    return found


def context_of(facts: Facts, wish: Wish) -> int:
    fit = solve(facts, wish).fit
    return 0 if fit is None else fit.context


@settings(max_examples=60)
@given(models, cards, sizes, wishes)
def test_no_plan_exceeds_what_a_device_has(model: ModelFacts, cards_free: list[int], main: int, wish: Wish) -> None:
    here = facts(model, cards_free, main)
    advice = decide(here, {}, wish)
    assert not isinstance(advice, Skip)
    placement = advice.placement
    if placement is None:
        assert "does not fit" in advice.left["context_tokens"].reason
        return
    machine = machine_of(here, wish)
    names = tuple(f"GPU{index}" for index in range(len(machine.cards)))
    knobs = {
        **advice.values,
        "load_mode": "none",
        "gpu_layers": placement.gpu_layers,
        "cpu_moe_layers": placement.cpu_moe_layers,
    }
    used = sum(placement.card_layers) > 0
    split = tuple(float(layers) for layers in placement.card_layers)
    estimate = estimate_memory(model, knobs, gpus=names if used else (), split=split if used else None)
    assert estimate is not None
    rooms = {CPU: main, **{name: card.available_bytes for name, card in zip(names, machine.cards, strict=True)}}
    for device in estimate.devices:
        assert device.total_bytes <= rooms[device.device], device


@settings(max_examples=60)
@given(models, cards, sizes, wishes, st.data(), st.integers(1, 6 * GIB))
def test_more_memory_never_gives_less_context(
    model: ModelFacts, cards_free: list[int], main: int, wish: Wish, data: st.DataObject, more: int
) -> None:
    before = context_of(facts(model, cards_free, main), wish)
    device = data.draw(st.integers(0, len(cards_free)))
    grown = [free + more if index == device else free for index, free in enumerate(cards_free)]
    after = context_of(facts(model, grown, main + (more if device == len(cards_free) else 0)), wish)
    assert after >= before


@settings(max_examples=40)
@given(models, cards, sizes, wishes, st.randoms())
def test_the_order_of_devices_does_not_matter(
    model: ModelFacts, cards_free: list[int], main: int, wish: Wish, random: Any
) -> None:
    shuffled = [*cards_free]
    random.shuffle(shuffled)
    one = decide(facts(model, cards_free, main), {}, wish)
    assert one == decide(facts(model, shuffled, main), {}, wish)


@settings(max_examples=40)
@given(sizes, st.sampled_from([8192, 100_000]), st.integers(1, 8), st.sampled_from([1024, 4096]))
def test_only_memory_makes_it_smaller(main: int, context: int, slots: int, minimum: int) -> None:
    here, asked = facts(DENSE, [], main), wish(context, slots, minimum)
    solution = solve(here, asked)
    fit = solution.fit
    if fit is None:
        assert solution.solver.place(512, 1) is None
    elif fit.slots < slots:
        steps = [slots >> halvings for halvings in range(slots.bit_length())]
        assert fit.context <= minimum
        assert solution.solver.place(minimum, steps[steps.index(fit.slots) - 1]) is None
    elif minimum <= fit.context < context:
        assert solution.solver.place((fit.context // 1024 + 1) * 1024, fit.slots) is None


def test_a_smaller_cache_format_holds_more() -> None:
    here = facts(DENSE, [5 * GIB], 64 * GIB)
    plain = context_of(here, wish(131072))
    assert context_of(here, wish(131072, kv_type_k="q4_0", kv_type_v="q4_0")) > plain


def test_a_format_that_is_set_now_is_what_memory_must_hold() -> None:
    here = facts(DENSE, [5 * GIB], 64 * GIB)
    asked = wish(131072)
    now = replace(asked, current={"kv_type_k": "q8_0", "kv_type_v": "q8_0"})
    assert context_of(here, now) > context_of(here, asked)
    assert context_of(here, replace(now, pins={"kv_type_k": "f16", "kv_type_v": "f16"})) == context_of(here, asked)


def test_experts_go_before_layers() -> None:
    fit = solve(facts(EXPERTS, [5 * GIB], 32 * GIB), wish()).fit
    assert fit is not None
    assert (fit.placement.where, fit.placement.spills) == ("gpu+cpu", "experts")
    assert fit.placement.gpu_layers == LAYERS + 1
    assert 0 < fit.placement.cpu_moe_layers < LAYERS
    assert fit.placement.kv_main_bytes == 0
    small = solve(facts(EXPERTS, [int(2.4 * GIB)], 32 * GIB), wish()).fit
    assert small is not None
    assert small.placement.spills == "layers"
    assert small.placement.cpu_moe_layers == LAYERS


def test_a_layer_takes_its_cache_along_and_the_reason_says_so() -> None:
    advice = decide(facts(DENSE, [3 * GIB], 32 * GIB), {}, wish(minimum=16384))
    assert not isinstance(advice, Skip)
    assert advice.placement is not None
    assert advice.placement.kv_main_bytes > 0
    assert "of their KV cache" in advice.reason


def test_the_price_of_a_spill_is_bytes_over_bandwidth() -> None:
    here = facts(DENSE, [int(2.7 * GIB)], 32 * GIB)
    gpu = here.gpus[0].model_copy(update={"memory_bandwidth_bytes_per_s": 500_000_000_000}) if here.gpus else None
    memory = MemoryFacts(total_bytes=64 * GIB, available_bytes=32 * GIB, bandwidth_bytes_per_s=50_000_000_000)
    here = here.model_copy(update={"gpus": (gpu,), "memory": memory})
    advice = decide(here, {}, wish())
    assert not isinstance(advice, Skip)
    placement = advice.placement
    assert placement is not None
    total = placement.read_card_bytes + placement.read_main_bytes
    speed = total / (placement.read_card_bytes + 10 * placement.read_main_bytes)
    assert f"about {100 * speed:.0f}% of the decode speed" in advice.reason
    assert placement.read_main_bytes == (LAYERS + 1 - placement.gpu_layers) * 150 * MIB


@pytest.mark.parametrize("slots", [1, 2])
def test_what_does_not_fit_names_what_would(slots: int) -> None:
    advice = decide(facts(DENSE, [], 6 * GIB), {}, wish(slots=slots, context_tokens=262144))
    assert not isinstance(advice, Skip)
    assert advice.placement is None
    assert advice.values["context_tokens"] == 262144
    smaller, *_ = advice.nearest
    assert 4096 <= int(str(smaller.knobs["context_tokens"])) < 262144
    assert "does not fit" in advice.reason
    assert smaller.text in advice.reason
    assert solve(facts(DENSE, [], 6 * GIB), wish(**dict(smaller.knobs))).fit is not None  # type: ignore[arg-type]


def test_near_things_that_change_answers_are_named_and_never_chosen() -> None:
    here = facts(DENSE, [2 * GIB], 1 * GIB)
    advice = decide(here, {}, wish(minimum=4096))
    assert not isinstance(advice, Skip)
    assert advice.placement is None
    assert advice.values["kv_type_k"] == "f16"
    kinds = [item.quantization or ("kv" if "kv_type_k" in item.knobs else "context") for item in advice.nearest]
    assert len(kinds) <= 3
    assert all(item.changes_answer == (kind != "context") for item, kind in zip(advice.nearest, kinds, strict=True))
    assert any(item.quantization for item in advice.nearest)
    for item in advice.nearest:
        assert item.size_bytes is None or item.size_bytes < (DENSE.tensor_bytes or 0)


def test_a_longer_context_is_worth_measuring_where_a_spill_left_the_minimum() -> None:
    advice = decide(facts(DENSE, [int(2.7 * GIB)], 32 * GIB), {}, wish(16384))
    assert not isinstance(advice, Skip)
    assert advice.values["context_tokens"] == 4096
    assert {"context_tokens": 16384} in advice.candidates


def test_without_main_memory_known_a_model_must_fit_the_card() -> None:
    here = facts(DENSE, [8 * GIB], 0).model_copy(update={"memory": None})
    assert solve(here, wish()).fit is not None
    small = facts(DENSE, [2 * GIB], 0).model_copy(update={"memory": None})
    found = place_model(small, DENSE, wish())
    assert isinstance(found, Skip)
    assert found.lacked == ("memory.available_bytes",)
