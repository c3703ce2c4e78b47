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
from velollm.rules.costs import Costs
from velollm.rules.fit_memory import Solution, decide, place_model
from velollm.rules.placement import place_costs
from velollm.rules.room import Machine, Room, machine_of
from velollm.units import GIB, MIB

LAYERS = 8


def part(size: int) -> PartFacts:
    return PartFacts(bytes=size, matrices={"q4_k": size}, spans={"q4_k": (0, size)})


def model(architecture: str, expert_bytes: int = 0, **fields: Any) -> ModelFacts:
    """A model of 8 layers of 150 MiB each, 100 of them feed-forward, and experts besides."""
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
        "feed_forward_parts": (part(100 * MIB),) * LAYERS,
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


def wish(context: int = 16384, slots: int = 1, minimum: int = 4096, backend: str = "ollama", **pins: KnobValue) -> Wish:
    profile = Profile("test", "", context, slots, "chat", "decode", minimum_context_tokens=minimum)
    defaults: dict[str, KnobValue] = {"context_tokens": 4096, "slots": 1, "batch": 2048, "ubatch": 2048}
    return Wish(profile, defaults, pins, backend)


wishes = st.builds(
    wish,
    context=st.sampled_from([4096, 16384, 50_000, 131_072]),
    slots=st.integers(1, 6),
    minimum=st.sampled_from([1024, 4096]),
    backend=st.sampled_from(["ollama", "llamacpp"]),
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
        "cpu_ffn_layers": placement.cpu_ffn_layers,
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


def test_feed_forward_parts_go_before_layers_where_the_server_has_one_model() -> None:
    here = facts(DENSE, [int(2.7 * GIB)], 32 * GIB)
    advice = decide(here, {}, wish(backend="llamacpp"))
    assert not isinstance(advice, Skip)
    placement = advice.placement
    assert placement is not None
    assert (placement.where, placement.spills) == ("gpu+cpu", "feed-forward")
    assert (placement.gpu_layers, placement.kv_main_bytes) == (LAYERS + 1, 0)
    assert placement.read_main_bytes == placement.cpu_ffn_layers * 100 * MIB
    # The engine's own choice is whole layers, so this has to be set, and --fit then moves nothing.
    assert advice.values["cpu_ffn_layers"] == placement.cpu_ffn_layers > 0
    assert advice.values.get("gpu_layers") is None
    reason, basis = advice.why("cpu_ffn_layers")
    assert basis == "arithmetic"
    assert "stay on the GPU" in reason
    assert "% of the decode speed" in reason or "each token reads" in reason


def test_in_a_server_of_many_models_they_are_named_and_not_set() -> None:
    advice = decide(facts(DENSE, [int(2.7 * GIB)], 32 * GIB), {}, wish())
    assert not isinstance(advice, Skip)
    assert advice.placement is not None
    assert advice.placement.spills == "layers"
    assert advice.values.get("cpu_ffn_layers") is None
    assert "--set cpu_ffn_layers=" in advice.reason
    assert "every model of the server" in advice.reason


@pytest.mark.parametrize(
    ("model", "cards", "pins"),
    [(EXPERTS, [int(2.4 * GIB)], {}), (DENSE, [2 * GIB, 2 * GIB], {}), (DENSE, [int(2.7 * GIB)], {"gpu_layers": 4})],
    ids=["experts are left to --fit", "so are several cards", "the user's own numbers count"],
)
def test_where_the_plan_does_not_set_them(model: ModelFacts, cards: list[int], pins: dict[str, KnobValue]) -> None:
    advice = decide(facts(model, cards, 32 * GIB), {}, wish(backend="llamacpp", **pins))  # type: ignore[arg-type]
    assert not isinstance(advice, Skip)
    assert advice.values.get("cpu_ffn_layers") is None
    assert advice.placement is not None
    assert advice.placement.cpu_ffn_layers == 0


def test_the_users_own_number_of_feed_forward_parts_is_counted_with() -> None:
    fit = solve(facts(DENSE, [8 * GIB], 32 * GIB), wish(cpu_ffn_layers=3)).fit
    assert fit is not None
    assert (fit.placement.spills, fit.placement.cpu_ffn_layers) == ("feed-forward", 3)
    assert fit.placement.read_main_bytes == 300 * MIB


@settings(max_examples=60)
@given(
    st.integers(3 * GIB // 2, 4 * GIB),
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(1, 200), st.integers(0, 200), st.integers(0, 400)), min_size=1, max_size=12),
)
def test_the_spill_that_reads_least_from_main_memory_is_taken(
    free: int, slots: int, layers: list[tuple[int, int, int]]
) -> None:
    inner, rest, cache = zip(*layers, strict=True)
    costs = Costs(
        layers=tuple((a + b) * MIB for a, b in zip(inner, rest, strict=True)),
        experts=(0,) * len(layers),
        cache=tuple(size * MIB for size in cache),
        output=100 * MIB,
        card=50 * MIB,
        guest=0,
        main=0,
        all_main=10 * GIB,
        feed_forward=tuple(size * MIB for size in inner),
        slots=slots,
    )
    machine = Machine((Room("GPU memory", free),), Room("main memory", 64 * GIB))
    with_it, without = (place_costs(costs, machine, spills_ffn=spills) for spills in (True, False))
    assert with_it is not None
    assert without is not None
    slow, slow_without = (p.read_main_bytes + p.kv_main_bytes / slots for p in (with_it, without))
    assert slow <= slow_without
    assert sum(with_it.card_bytes) <= free
    if with_it.spills == "feed-forward":
        assert with_it.kv_main_bytes == 0
    roomier = replace(machine, cards=(Room("GPU memory", free + 100 * MIB),))
    more = place_costs(costs, roomier, spills_ffn=True)
    assert more is not None
    assert more.read_main_bytes + more.kv_main_bytes / slots <= slow


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
