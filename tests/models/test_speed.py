"""Speed from arithmetic: what is unknown stays so, and numbers go the way that bandwidth and bytes push them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.facts import Facts, GpuFacts, MemoryFacts
from velollm.models.accelerators import load_accelerators
from velollm.models.catalog import find_catalog_model
from velollm.models.reads import active_weight_bytes, estimate_token_cost
from velollm.models.speed import (
    DeviceSpeed,
    Rate,
    Share,
    Shares,
    backend_shares,
    cpu_speed,
    estimate_decode,
    estimate_ttft,
    gpu_speed,
    load_reports,
)
from velollm.units import GIB

SHARES = Shares(Share(0.5, 0.6, 0.8, 3), Share(0.2, 0.3, 0.4, 2), Share(0.3, 0.4, 0.5, 2))


def device(read: float | None, multiply: float | None = None, evidence: str = "measured") -> DeviceSpeed:
    rates = [None if value is None else Rate(value, evidence, "a test") for value in (read, multiply)]  # type: ignore[arg-type]
    return DeviceSpeed("D", "cpu", rates[0], rates[1], SHARES)


def test_every_report_is_of_a_known_accelerator_and_model() -> None:
    rows = {row.id: row for row in load_accelerators()}
    for report in load_reports():
        assert report.accelerator in rows
        assert find_catalog_model(report.model) is not None
        assert report.decode_tokens_per_s or report.prefill_tokens_per_s


def test_shares_of_a_roofline_are_below_one() -> None:
    for shares in backend_shares().values():
        for share in (shares.decode, shares.sparse, shares.prefill):
            assert share is None or 0.1 < share.least <= share.middle <= share.most < 1
    assert backend_shares()["cuda"].decode is not None


def test_decode_is_bytes_over_the_reached_bandwidth() -> None:
    found = estimate_decode([(device(100e9), 10 * 10**9)], sparse=False)
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((6.0, 5.0, 8.0))
    assert found.evidence == "arithmetic"
    assert "100 GB/s" in found.basis


def test_one_device_after_another() -> None:
    both = estimate_decode([(device(100e9), 10**9), (device(10e9, evidence="table"), 10**9)], sparse=False)
    assert both is not None
    assert both.value == pytest.approx(1 / (0.01 / 0.6 + 0.1 / 0.6))
    assert both.evidence == "table"


def test_what_is_unknown_stays_unknown() -> None:
    assert estimate_decode([(device(None), 10**9)], sparse=False) is None
    assert estimate_decode([(device(100e9), 10**9), (device(None), 1)], sparse=False) is None
    assert estimate_decode([(device(100e9), 0)], sparse=False) is None
    decode = estimate_decode([(device(100e9), 10**9)], sparse=True)
    assert decode is not None
    assert estimate_ttft(512, [(device(100e9, None), 1e10)], decode) is None
    assert estimate_ttft(512, [(device(100e9, 1e12), 1e10)], None) is None
    no_share = DeviceSpeed("D", "metal", Rate(1e11, "table", "x"), Rate(1e12, "table", "x"), Shares())
    assert estimate_decode([(no_share, 10**9)], sparse=False) is None


@given(st.floats(1e9, 1e13), st.floats(1.01, 100), st.integers(10**6, 10**12), st.booleans())
def test_more_bandwidth_is_never_slower_and_more_bytes_never_faster(
    rate: float, factor: float, count: int, sparse: bool
) -> None:
    base = estimate_decode([(device(rate), count)], sparse=sparse)
    faster = estimate_decode([(device(rate * factor), count)], sparse=sparse)
    larger = estimate_decode([(device(rate), count * 2)], sparse=sparse)
    assert base is not None
    assert faster is not None
    assert larger is not None
    assert larger.value < base.value < faster.value
    assert base.low <= base.value <= base.high


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_a_longer_prompt_takes_longer(one: int, other: int) -> None:
    decode = estimate_decode([(device(100e9), 10**9)], sparse=False)
    times = [estimate_ttft(count, [(device(None, 1e12), 1e10)], decode) for count in sorted((one, other))]
    assert times[0] is not None
    assert times[1] is not None
    assert times[0].value <= times[1].value


def test_only_the_experts_in_use_are_read() -> None:
    moe = find_catalog_model("qwen3:30b@q4_K_M")
    dense = find_catalog_model("qwen3:32b@q4_K_M")
    assert moe is not None
    assert dense is not None
    active = active_weight_bytes(moe)
    assert active is not None
    assert moe.tensor_bytes is not None
    assert 0.08 < active / moe.tensor_bytes < 0.15  # 3.3 of 30.5 thousand million weights
    assert (active_weight_bytes(dense) or 0) > 0.9 * (dense.tensor_bytes or 0)


def test_a_deeper_cache_costs_bytes_and_weights_cost_operations() -> None:
    model = find_catalog_model("llama3.1:8b@q4_K_M")
    assert model is not None
    near = estimate_token_cost(model, depth_tokens=256, knobs={})
    far = estimate_token_cost(model, depth_tokens=8192, knobs={})
    assert near is not None
    assert far is not None
    assert far.cache_bytes == 8192 * 128 * 1024  # 8 heads of 128 in 32 layers, K and V, 2 bytes
    assert near.weight_bytes == far.weight_bytes
    assert near.prompt_operations == pytest.approx(2 * 6.98e9, rel=0.05)


def test_rates_come_from_the_description_before_the_table() -> None:
    facts = Facts(os="linux", memory=MemoryFacts(total_bytes=16 * GIB, bandwidth_bytes_per_s=50 * 10**9))
    own = gpu_speed(GpuFacts(vendor="nvidia", name="RTX 4070", memory_bandwidth_bytes_per_s=10**11), facts)
    table = gpu_speed(GpuFacts(vendor="nvidia", name="NVIDIA GeForce RTX 4070"), facts)
    unknown = gpu_speed(GpuFacts(vendor="nvidia", name="NVIDIA Something New"), facts)
    assert own.read is not None
    assert table.read is not None
    assert (own.read.per_s, own.read.source) == (10**11, "the hardware description")
    assert table.read.per_s == 504_192_000_000
    assert (unknown.read, unknown.multiply, unknown.backend) == (None, None, "cuda")
    assert cpu_speed(facts, None, None).read == Rate(50 * 10**9, "table", "the hardware description")
    assert cpu_speed(Facts(), None, None).read is None


def test_a_mac_s_processor_reads_the_memory_that_its_gpu_reads() -> None:
    facts = Facts(os="macos", gpus=(GpuFacts(vendor="apple", name="Apple M2", unified_memory=True),))
    speed = cpu_speed(facts, None, None)
    assert speed.read is not None
    assert speed.read.per_s == 100_000_000_000
