from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.facts import MlaFacts, ModelFacts, PartFacts, SsmFacts
from velollm.knobs import KnobValue
from velollm.models.memory import DeviceMemory, Engine, MemoryEstimate, estimate_memory, estimate_total_bytes
from velollm.models.memory_cache import cache_size, kv_layer_bytes, state_layer_bytes
from velollm.units import GIB, MIB


def model(**changes: object) -> ModelFacts:
    """Shape of Llama 3.1 8B, with changes."""
    layers = changes.get("layers", 32)
    assert isinstance(layers, int)
    shape: dict[str, object] = {
        "name": "llama3.1-8b",
        "architecture": "llama",
        "layers": layers,
        "embedding_length": 4096,
        "feed_forward_length": (14336,) * layers,
        "heads": (32,) * layers,
        "kv_heads": (8,) * layers,
        "key_length": 128,
        "value_length": 128,
        "vocab": 128256,
        "context_train": 131072,
        "recurrent_layers": (False,) * layers,
        "tensor_bytes": 4_900_000_000,
    }
    return ModelFacts.model_validate(shape | changes)


def placed(**changes: object) -> ModelFacts:
    """The same with its weights by part: layers of 100 MiB, of which 96 in q4_0, and 300 MiB at each end."""
    layer = PartFacts(bytes=100 * MIB, largest_bytes=30 * MIB, matrices={"q4_0": 96 * MIB})
    parts: dict[str, object] = {
        "layer_parts": (layer,) * 32,
        "expert_parts": (PartFacts(bytes=0, largest_bytes=0),) * 32,
        "mtp_parts": (),
        "input_part": PartFacts(bytes=300 * MIB, largest_bytes=300 * MIB),
        "output_part": PartFacts(bytes=300 * MIB, largest_bytes=300 * MIB, matrices={"q6_k": 300 * MIB}),
        "tied_embeddings": False,
    }
    return model(**(parts | changes))


def kv_bytes(
    shape: ModelFacts, context: int, slots: int, kind_k: str, kind_v: str, *, ubatch: int = 512, unified: bool = False
) -> int | None:
    size = cache_size(shape, context, slots, batch=2048, ubatch=ubatch, unified=unified)
    found = kv_layer_bytes(shape, size, kind_k, kind_v)
    return None if found is None else sum(found)


def total(shape: ModelFacts, **knobs: KnobValue) -> int:
    found = estimate_memory(shape, knobs)
    assert found is not None
    return found.total_bytes


def cpu(estimate: MemoryEstimate | None) -> DeviceMemory:
    assert estimate is not None
    return estimate.devices[0]


def test_kv_of_a_model_with_grouped_heads() -> None:
    # 2 × 32 layers × 8 heads × 128 values × 2 bytes = 128 KiB a token.
    assert kv_bytes(model(), 8192, 1, "f16", "f16") == GIB
    assert kv_bytes(model(), 8192, 4, "f16", "f16") == 4 * GIB
    assert kv_bytes(model(), 8192, 4, "f16", "f16", unified=True) == 4 * GIB


def test_kv_types_by_block_bytes() -> None:
    assert kv_bytes(model(), 8192, 1, "q8_0", "q8_0") == GIB // 2 * 34 // 32
    assert kv_bytes(model(), 8192, 1, "q8_0", "q4_0") == GIB // 4 * 34 // 32 + GIB // 4 * 18 // 32
    assert kv_bytes(model(), 8192, 1, "q9_0", "f16") is None


def test_cells_are_padded_for_each_slot() -> None:
    token = 128 * 1024
    assert kv_bytes(model(), 1, 3, "f16", "f16") == 3 * 256 * token
    assert kv_bytes(model(), 257, 3, "f16", "f16") == 3 * 512 * token
    assert kv_bytes(model(), 257, 3, "f16", "f16", unified=True) == 1024 * token


def test_sliding_layers_keep_a_window_and_a_batch() -> None:
    gemma = model(sliding_window=1024, sliding_layers=(True,) * 24 + (False,) * 8, architecture="gemma3")
    row = 2 * 8 * 128 * 2
    assert kv_bytes(gemma, 8192, 2, "f16", "f16") == 2 * row * (24 * 1536 + 8 * 8192)
    assert kv_bytes(gemma, 8192, 1, "f16", "f16", ubatch=100) == row * (24 * 1280 + 8 * 8192)
    assert kv_bytes(gemma, 1024, 1, "f16", "f16") == row * 32 * 1024
    # One cache for all slots holds the windows of all of them, and one step.
    assert kv_bytes(gemma, 8192, 2, "f16", "f16", unified=True) == row * (24 * 2560 + 8 * 16384)


def test_sliding_layers_may_have_other_head_sizes() -> None:
    gemma = model(layers=2, sliding_window=256, sliding_layers=(True, False), key_length_swa=64, value_length_swa=32)
    assert kv_bytes(gemma, 2048, 1, "f16", "f16", ubatch=256) == 8 * 2 * (96 * 512 + 256 * 2048)


def test_mla_keeps_one_compressed_row_and_no_v() -> None:
    deepseek = model(kv_heads=(1,) * 32, mla=MlaFacts(kv_lora_rank=512, rope_dims=64), key_length=576, value_length=512)
    assert kv_bytes(deepseek, 1024, 1, "f16", "f32") == 32 * 576 * 2 * 1024


def test_shared_layers_keep_nothing() -> None:
    assert kv_bytes(model(kv_shared_layers=12), 8192, 1, "f16", "f16") == GIB * 20 // 32


def test_mtp_layers_keep_a_cache_unless_the_engine_leaves_them_out() -> None:
    assert kv_bytes(model(mtp_layers=1, architecture="glm4moe"), 8192, 1, "f16", "f16") == GIB * 33 // 32
    assert kv_bytes(model(mtp_layers=1, architecture="mimo2"), 8192, 1, "f16", "f16") == GIB


def test_mtp_layers_are_loaded_where_they_guess_and_nowhere_else() -> None:
    layer = PartFacts(bytes=100 * MIB, matrices={"q4_0": 96 * MIB})
    heads = {"mtp_layers": 1, "mtp_parts": (layer,)}
    knobs: dict[str, KnobValue] = {"context_tokens": 4096, "load_mode": "none"}
    plain = total(placed(architecture="mimo2"), **knobs)
    assert total(placed(architecture="mimo2", **heads), **knobs) == plain
    guessing = estimate_memory(placed(architecture="mimo2", **heads), {**knobs, "speculation": "draft-mtp"})
    assert guessing is not None
    (device,) = guessing.devices
    assert device.kv_bytes == 32 * 2 * 8 * 128 * 2 * 4096
    # Its own cache beside that of the 32 layers, and what it computes in.
    assert device.draft_bytes > device.kv_bytes // 32
    assert device.total_bytes > plain + 100 * MIB + device.draft_bytes - MIB
    # The engine skips those of glm4moe whatever is asked for.
    other = {**knobs, "speculation": "draft-mtp"}
    none = estimate_memory(placed(architecture="glm4moe", **heads), other)
    assert none is not None
    assert none.devices[0].draft_bytes == 0


def test_guesses_keep_older_states() -> None:
    ssm = SsmFacts(conv_kernel=4, inner_size=4096, state_size=128, group_count=8, time_step_rank=32)
    recurs = (True,) * 31 + (False,)
    shape = {"kv_heads": (0,) * 31 + (8,), "recurrent_layers": recurs, "ssm": ssm, "mtp_layers": 1}
    for architecture, kept in (("qwen35", 4), ("qwen3next", 1)):
        hybrid = model(architecture=architecture, **shape)
        one = estimate_memory(hybrid, {"context_tokens": 4096})
        more = estimate_memory(hybrid, {"context_tokens": 4096, "speculation": "draft-mtp", "speculation_tokens": 3})
        assert one is not None and more is not None
        assert more.devices[0].recurrent_bytes == kept * one.devices[0].recurrent_bytes
        simple = estimate_memory(hybrid, {"context_tokens": 4096, "speculation": "draft-simple"})
        assert simple is not None
        assert simple.devices[0].recurrent_bytes == one.devices[0].recurrent_bytes


def test_recurrent_layers_keep_a_state_for_each_slot_whatever_the_context() -> None:
    ssm = SsmFacts(conv_kernel=4, inner_size=4096, state_size=128, group_count=8)
    mamba = model(kv_heads=(0,) * 32, heads=(0,) * 32, recurrent_layers=(True,) * 32, ssm=ssm, architecture="mamba2")
    state = 4 * (3 * (4096 + 2 * 8 * 128) + 128 * 4096)
    assert kv_bytes(mamba, 65536, 4, "q8_0", "q8_0") == 0
    assert state_layer_bytes(mamba, 1) == (state,) * 32
    assert state_layer_bytes(mamba, 4) == (4 * state,) * 32


def test_hybrid_models_keep_both() -> None:
    ssm = SsmFacts(conv_kernel=3, inner_size=64, state_size=0, group_count=0)
    hybrid = model(layers=2, kv_heads=(0, 8), recurrent_layers=(True, False), ssm=ssm, architecture="lfm2")
    assert kv_bytes(hybrid, 256, 2, "f16", "f16") == 2 * 256 * 2 * 8 * 128 * 2
    assert state_layer_bytes(hybrid, 2) == (2 * 2 * 64 * 4, 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"layers": None, "kv_heads": None, "recurrent_layers": None},
        {"kv_heads": None},
        {"heads": None},
        {"key_length": None},
        {"embedding_length": None},
        {"feed_forward_length": None},
        {"vocab": None},
        {"recurrent_layers": None},
        {"architecture": "deepseek32"},
        {"recurrent_layers": (True,) * 32},
        {"ssm": SsmFacts(conv_kernel=4)},
        {"recurrent_layers": (True,) * 32, "ssm": SsmFacts(conv_kernel=4)},
        {"mla": MlaFacts(kv_lora_rank=512, rope_dims=64)},
    ],
)
def test_an_unknown_shape_gives_no_number(changes: dict[str, object]) -> None:
    unknown = model().model_copy(update=changes)
    assert estimate_memory(unknown, {"context_tokens": 4096}) is None
    assert estimate_total_bytes(unknown, {"context_tokens": 4096}) is None


def test_the_total_is_the_sum_of_the_parts() -> None:
    found = estimate_memory(model(), {"context_tokens": 8192, "slots": 2})
    assert found is not None
    (device,) = found.devices
    assert (device.device, device.basis) == ("CPU", "arithmetic")
    assert (device.weights_bytes, device.kv_bytes) == (4_900_000_000, 2 * GIB)
    assert device.output_bytes == 2 * 128256 * 4
    parts = (device.weights_bytes, device.kv_bytes, device.compute_bytes, device.output_bytes)
    assert found.total_bytes == device.total_bytes == sum(parts)


def test_absent_knobs_are_the_engines_defaults() -> None:
    spelled: dict[str, KnobValue] = {
        "context_tokens": 131072,
        "slots": 1,
        "kv_type_k": "f16",
        "kv_type_v": "f16",
        "batch": 2048,
        "ubatch": 512,
        "load_mode": "mmap",
        "flash_attention": "auto",
        "kv_unified": "off",
        "kv_offload": "on",
    }
    assert estimate_memory(model(), {}) == estimate_memory(model(), spelled)
    assert estimate_memory(model(context_train=None), {}) is None


def test_the_file_stands_in_for_unknown_tensors() -> None:
    assert cpu(estimate_memory(model(tensor_bytes=None, file_bytes=7), {"context_tokens": 256})).weights_bytes == 7
    assert estimate_memory(model(tensor_bytes=None), {"context_tokens": 256}) is None


def test_a_smaller_batch_caps_the_physical_one() -> None:
    assert total(model(), context_tokens=4096, batch=128, ubatch=512) == total(
        model(), context_tokens=4096, batch=128, ubatch=128
    )


def test_without_flash_attention_the_scores_take_memory() -> None:
    with_it = cpu(estimate_memory(model(), {"context_tokens": 32768})).compute_bytes
    without = cpu(estimate_memory(model(), {"context_tokens": 32768, "flash_attention": "off"})).compute_bytes
    # 32 heads × 32,768 cells × 512 tokens × 4 bytes = 2 GiB.
    assert with_it < GIB // 4
    assert 2 * GIB < without < 2 * GIB + GIB // 4


def test_speculation_takes_rows_of_logits() -> None:
    plain = cpu(estimate_memory(model(), {"context_tokens": 4096}))
    guessed = cpu(estimate_memory(model(), {"context_tokens": 4096, "speculation": "ngram-mod"}))
    assert plain.compute_bytes <= guessed.compute_bytes
    assert guessed.output_bytes == plain.output_bytes


def test_a_repacked_copy_stands_beside_a_mapped_file_and_in_place_of_a_read_one() -> None:
    spans = {"q4_0": (100 * MIB, 196 * MIB), "": (0, 200 * MIB)}
    layer = PartFacts(bytes=100 * MIB, matrices={"q4_0": 96 * MIB}, spans=spans)
    shape = placed(layer_parts=(layer,) * 32)
    read = cpu(estimate_memory(shape, {"context_tokens": 256, "load_mode": "none"}))
    assert (read.weights_bytes, read.repack_bytes) == ((32 * 4 + 600) * MIB, 32 * 96 * MIB)
    mapped = cpu(estimate_memory(shape, {"context_tokens": 256, "load_mode": "mmap"}))
    assert (mapped.weights_bytes, mapped.repack_bytes) == (200 * MIB, 32 * 96 * MIB)
    # What must be there does not depend on how the file is read.
    assert estimate_total_bytes(shape, {"context_tokens": 256, "load_mode": "mmap"}) == read.total_bytes


def test_a_processor_that_repacks_nothing() -> None:
    plain = cpu(estimate_memory(placed(), {"context_tokens": 256}, engine=Engine(frozenset())))
    assert (plain.weights_bytes, plain.repack_bytes) == (3800 * MIB, 0)


def test_tied_embeddings_are_kept_twice_where_they_must_be() -> None:
    tied = placed(
        tied_embeddings=True,
        input_part=PartFacts(bytes=300 * MIB, matrices={"q4_0": 300 * MIB}),
        output_part=PartFacts(bytes=0),
    )
    alone = cpu(estimate_memory(tied, {"context_tokens": 256, "load_mode": "none"}))
    assert alone.repack_bytes == (32 * 96 + 300) * MIB
    assert alone.weights_bytes == (32 * 4 + 300) * MIB
    both = estimate_memory(tied, {"context_tokens": 256}, gpus=("GPU",))
    assert both is not None
    assert [device.weights_bytes for device in both.devices] == [300 * MIB, 3500 * MIB]


def test_layers_go_to_the_gpu_from_the_last_one_on() -> None:
    found = estimate_memory(placed(), {"context_tokens": 8192, "gpu_layers": 11}, gpus=("GPU",))
    assert found is not None
    main, gpu = found.devices
    assert (main.device, gpu.device) == ("CPU", "GPU")
    # Ten layers and the output matrix.
    assert gpu.weights_bytes == 1300 * MIB
    assert main.weights_bytes == (2200 + 300) * MIB
    assert (main.repack_bytes, gpu.repack_bytes) == (0, 0)
    assert gpu.kv_bytes == GIB * 10 // 32
    assert main.kv_bytes == GIB * 22 // 32
    assert gpu.compute_bytes > 30 * MIB


def test_the_cache_stays_in_main_memory_where_it_is_not_offloaded() -> None:
    found = estimate_memory(placed(), {"context_tokens": 8192, "kv_offload": "off"}, gpus=("GPU",))
    assert found is not None
    assert [device.kv_bytes for device in found.devices] == [GIB, 0]


def test_experts_stay_in_main_memory() -> None:
    shape = placed(expert_parts=(PartFacts(bytes=50 * MIB, largest_bytes=20 * MIB),) * 32)
    all_on = estimate_memory(shape, {"context_tokens": 8192}, gpus=("GPU",))
    some_off = estimate_memory(shape, {"context_tokens": 8192, "cpu_moe_layers": 8}, gpus=("GPU",))
    assert all_on is not None
    assert some_off is not None
    assert all_on.devices[1].weights_bytes - some_off.devices[1].weights_bytes == 400 * MIB
    assert some_off.devices[0].weights_bytes - all_on.devices[0].weights_bytes == 400 * MIB
    # For a large step the GPU takes in one matrix of them at a time.
    assert some_off.devices[1].compute_bytes == all_on.devices[1].compute_bytes + 20 * MIB


def test_dense_feed_forward_parts_stay_in_main_memory() -> None:
    shape = placed(feed_forward_parts=(PartFacts(bytes=60 * MIB, largest_bytes=22 * MIB),) * 32)
    all_on = estimate_memory(shape, {"context_tokens": 8192}, gpus=("GPU",))
    some_off = estimate_memory(shape, {"context_tokens": 8192, "cpu_ffn_layers": 8}, gpus=("GPU",))
    layers_off = estimate_memory(shape, {"context_tokens": 8192, "cpu_ffn_layers": 8, "gpu_layers": 27}, gpus=("GPU",))
    assert all_on is not None
    assert some_off is not None
    assert layers_off is not None
    assert all_on.devices[1].weights_bytes - some_off.devices[1].weights_bytes == 480 * MIB
    assert some_off.devices[0].weights_bytes - all_on.devices[0].weights_bytes == 480 * MIB
    assert some_off.devices[1].kv_bytes == all_on.devices[1].kv_bytes
    # For a large step the GPU takes in one matrix of them at a time.
    assert some_off.devices[1].compute_bytes == all_on.devices[1].compute_bytes + 22 * MIB
    # Six whole layers, and the feed-forward parts of two more.
    assert layers_off.devices[0].weights_bytes - all_on.devices[0].weights_bytes == (600 + 120) * MIB


def test_in_small_steps_the_cpu_computes_with_them() -> None:
    shape = placed(feed_forward_parts=(PartFacts(bytes=60 * MIB, largest_bytes=22 * MIB),) * 32)
    small: dict[str, KnobValue] = {"context_tokens": 8192, "ubatch": 16}
    all_on = estimate_memory(shape, small, gpus=("GPU",))
    some_off = estimate_memory(shape, {**small, "cpu_ffn_layers": 32}, gpus=("GPU",))
    assert all_on is not None
    assert some_off is not None
    assert some_off.devices[0].compute_bytes > all_on.devices[0].compute_bytes
    assert some_off.devices[1].compute_bytes < all_on.devices[1].compute_bytes


def test_without_a_gpu_everything_is_in_main_memory_anyhow() -> None:
    shape = placed(feed_forward_parts=(PartFacts(bytes=60 * MIB),) * 32)
    knobs: dict[str, KnobValue] = {"context_tokens": 8192}
    assert estimate_memory(shape, {**knobs, "cpu_ffn_layers": 9}) == estimate_memory(shape, knobs)


def test_layers_are_shared_out_by_the_split() -> None:
    even = estimate_memory(placed(), {"context_tokens": 8192}, gpus=("A", "B"))
    uneven = estimate_memory(placed(), {"context_tokens": 8192}, gpus=("A", "B"), split=(3.0, 1.0))
    assert even is not None
    assert uneven is not None
    assert [device.kv_bytes for device in even.devices] == [0, GIB * 17 // 32, GIB * 15 // 32]
    assert [device.kv_bytes for device in uneven.devices] == [0, GIB * 25 // 32, GIB * 7 // 32]


def test_a_draft_stands_beside_the_model() -> None:
    draft = model(layers=4, tensor_bytes=200 * MIB)
    alone, both = (
        cpu(estimate_memory(model(), {"context_tokens": 8192, "kv_type_k": "q8_0"}, draft=beside))
        for beside in (None, draft)
    )
    own = cpu(estimate_memory(draft, {"context_tokens": 8192}))
    assert alone.draft_bytes == 0
    assert both.draft_bytes == own.total_bytes
    assert both.kv_bytes == alone.kv_bytes
    assert estimate_memory(model(), {"context_tokens": 8192}, draft=model(vocab=None)) is None


SHAPES = st.builds(
    lambda window, kinds, experts: model(
        layers=6,
        tensor_bytes=MIB,
        embedding_length=512,
        feed_forward_length=(1024,) * 6,
        heads=(8,) * 6,
        kv_heads=(4,) * 6,
        key_length=64,
        value_length=64,
        vocab=4096,
        sliding_window=window,
        sliding_layers=(window is not None, False) * 3,
        architecture=kinds,
        experts=experts or None,
        experts_used=2 if experts else None,
        expert_feed_forward_length=256 if experts else None,
    ),
    st.one_of(st.none(), st.integers(1, 8192)),
    st.sampled_from(["llama", "gemma3", "qwen3moe", "gpt-oss", "phi3", "something-new"]),
    st.sampled_from([0, 8]),
)
KNOBS = st.fixed_dictionaries(
    {
        "context_tokens": st.integers(1, 100_000),
        "slots": st.integers(1, 9),
        "ubatch": st.integers(1, 4096),
        "flash_attention": st.sampled_from(["auto", "off"]),
        "kv_type_k": st.sampled_from(["f16", "q8_0", "q4_0"]),
        "kv_unified": st.sampled_from(["on", "off"]),
    }
)


@given(shape=SHAPES, knobs=KNOBS, more=st.integers(0, 50_000))
def test_more_context_never_takes_less(shape: ModelFacts, knobs: dict[str, KnobValue], more: int) -> None:
    context = knobs["context_tokens"]
    assert isinstance(context, int)
    assert total(shape, **knobs) <= total(shape, **{**knobs, "context_tokens": context + more})


@given(shape=SHAPES, knobs=KNOBS)
def test_more_slots_never_take_less(shape: ModelFacts, knobs: dict[str, KnobValue]) -> None:
    slots = knobs["slots"]
    assert isinstance(slots, int)
    few, many = (cpu(estimate_memory(shape, {**knobs, "slots": n})) for n in (slots, slots + 1))
    assert few.kv_bytes <= many.kv_bytes
    assert few.output_bytes < many.output_bytes


@given(shape=SHAPES, knobs=KNOBS, more=st.integers(0, 2048))
def test_a_larger_step_never_takes_less(shape: ModelFacts, knobs: dict[str, KnobValue], more: int) -> None:
    ubatch = knobs["ubatch"]
    assert isinstance(ubatch, int)
    assert total(shape, **knobs, batch=8192) <= total(shape, **{**knobs, "ubatch": ubatch + more, "batch": 8192})


@given(shape=SHAPES, knobs=KNOBS, layers=st.integers(0, 9), inner=st.integers(0, 9), gpus=st.integers(1, 3))
def test_placing_layers_loses_and_doubles_no_cache(
    shape: ModelFacts, knobs: dict[str, KnobValue], layers: int, inner: int, gpus: int
) -> None:
    part = PartFacts(bytes=MIB, largest_bytes=MIB)
    whole = shape.model_copy(
        update={
            "layer_parts": (part,) * 6,
            "expert_parts": (part,) * 6,
            "feed_forward_parts": (PartFacts(bytes=MIB // 2, largest_bytes=MIB // 4),) * 6,
            "input_part": part,
            "output_part": part,
            "tied_embeddings": False,
        }
    )
    alone = estimate_memory(whole, knobs, engine=Engine(frozenset()))
    placed_knobs = {**knobs, "gpu_layers": layers, "cpu_ffn_layers": inner}
    spread = estimate_memory(whole, placed_knobs, gpus=tuple("abc"[:gpus]))
    assert alone is not None
    assert spread is not None
    assert sum(device.kv_bytes for device in spread.devices) == alone.devices[0].kv_bytes
    assert sum(device.weights_bytes for device in spread.devices) == alone.devices[0].weights_bytes == 14 * MIB


def test_a_step_is_at_most_the_context_before_it_is_rounded() -> None:
    shape = ModelFacts(name="m", layers=1)
    assert cache_size(shape, 1000, 1, batch=2048, ubatch=2048).ubatch == 1000
    assert cache_size(shape, 1000, 1, batch=2048, ubatch=2048).cells == 1024
