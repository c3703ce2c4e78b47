"""Recommendations for described machines, their calibration by history, and the ways to get a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.fake_ollama import FakeOllama, fake_ollama
from velollm.backends.ollama_defaults import ollama_default_knobs
from velollm.backends.ollama_get import pull_model, quantize_model
from velollm.backends.ollama_http import OllamaApi, OllamaRefusalError
from velollm.bench.history import Record
from velollm.bench.samples import Sample
from velollm.config import user_paths
from velollm.errors import VeloError
from velollm.facts import Facts
from velollm.knobs import Wish
from velollm.models.accelerators import fill_from_table
from velollm.models.catalog import find_catalog_choice, find_catalog_model, load_catalog
from velollm.models.speed import Estimated
from velollm.plan import load_profile
from velollm.probe.hardware import parse_hardware
from velollm.recommend.choose import Recommendation, recommend_format, recommend_of_catalog
from velollm.recommend.finder import Finder
from velollm.recommend.get import Way, check_space, made_name, way_to
from velollm.recommend.history import Calibration, Measured, calibrate
from velollm.recommend.options import device_speeds
from velollm.report.recommend import render_way
from velollm.rules.room import as_idle


def machine(text: str) -> Facts:
    return as_idle(fill_from_table(parse_hardware(text)))


def recommend(text: str, model: str | None = None, profile: str = "chat") -> Recommendation:
    facts = machine(text)
    wish = Wish(load_profile(profile), ollama_default_knobs(facts), backend="ollama")
    speeds = device_speeds(facts, wish, None, None)
    if model is None:
        return recommend_of_catalog(facts, wish, speeds, Calibration())
    choice = find_catalog_choice(model)
    assert choice is not None
    return recommend_format(choice.row, facts, wish, speeds, Calibration())


def test_the_best_format_is_16_bits_where_they_fit_else_8_else_4() -> None:
    formats = {}
    for card in ("RTX 4090 24 GB", "RTX 4070 12 GB", "RTX 4060 8 GB"):
        best = recommend(f"64 GB RAM, 60 GB/s, {card}", "llama3.1:8b").best
        assert best is not None
        assert best.placement.where == "gpu"
        formats[card] = best.format
    assert formats == {"RTX 4090 24 GB": "f16", "RTX 4070 12 GB": "q8_0", "RTX 4060 8 GB": "q4_K_M"}


def test_four_bits_with_a_spill_come_last() -> None:
    found = recommend("64 GB RAM, 60 GB/s, RTX 3060 12 GB", "qwen3:30b")
    assert found.best is not None
    assert (found.best.format, found.best.placement.where) == ("q4_K_M", "gpu+cpu")


def test_a_model_that_is_too_slow_is_told_with_the_fastest_format() -> None:
    found = recommend("64 GB RAM, 20 GB/s, 8 cores", "llama3.1:8b")
    assert found.best is not None
    assert found.best.format == "q4_K_M"
    assert "no format reaches the 10 tokens/s" in found.why


def test_what_does_not_fit_is_not_offered() -> None:
    found = recommend("8 GB RAM, 25 GB/s", "llama3.1:70b")
    assert found.best is None
    assert all("fit" in misfit.reason for misfit in found.left_out)


def test_more_memory_never_recommends_a_smaller_model() -> None:
    sizes = []
    for card in ("RTX 4060 8 GB", "RTX 3060 12 GB"):
        found = recommend(f"16 GB RAM, {card}")
        assert found.best is not None
        assert found.best.choice is not None
        sizes.append(found.best.choice.row.parameters)
    assert sizes == sorted(sizes)


def test_an_agent_gets_a_model_that_calls_tools() -> None:
    found = recommend("32 GB RAM, RTX 4090 24 GB", profile="agent")
    for option in (found.best, *found.others):
        assert option is not None
        assert option.choice is not None
        assert "tools" in option.choice.row.capabilities


def test_an_unknown_bandwidth_gives_no_number() -> None:
    best = recommend("ram: 64 GB\ngpu: {name: Odd Card, memory: 24 GB}", "llama3.1:8b").best
    assert best is not None
    assert (best.decode, best.ttft) == (None, None)


def test_a_machine_of_unknown_bandwidth_is_told_what_fits_and_what_is_lacking() -> None:
    found = recommend("8 GB laptop")
    assert found.best is None
    assert "`bandwidth: 51.2 GB/s`" in found.why
    assert {misfit.reason for misfit in found.left_out} == {"fits, but its speed is unknown"}
    largest = find_catalog_model(found.left_out[0].name)
    assert largest is not None
    assert largest.parameters is not None
    assert largest.parameters > 5e9


def test_history_sets_the_arithmetic_right_and_a_measured_model_is_not_estimated() -> None:
    model = find_catalog_model("llama3.1:8b@q4_K_M")
    assert model is not None
    guess = Estimated(10.0, 8.0, 12.0, "arithmetic", "roofline")
    slower = Calibration(factors={False: (0.5, 3)})
    decode, _ = slower.applied(model, guess, None, on_gpu=False)
    assert decode is not None
    assert (decode.value, decode.low, decode.high, decode.evidence) == (5.0, 4.0, 6.0, "calibrated")
    assert "3 measurements here" in decode.basis
    assert slower.applied(model, guess, None, on_gpu=True) == (guess, None)
    key = (model.architecture, model.tensor_bytes, False)
    known = Calibration(measured={key: Measured(model, False, 7.5, "2026-11-25T10:00:00+00:00")})
    decode, _ = known.applied(model, guess, None, on_gpu=False)
    assert decode is not None
    assert (decode.value, decode.evidence) == (7.5, "measured")


def record(facts: Facts, tokens_per_s: float, **knobs: Any) -> Record:
    sample = Sample(arm="default", workload="chat", round=1, order=0, decode_tokens_per_s=tokens_per_s, finish="length")
    return Record(
        id="a",
        taken_at="2026-11-25T10:00:00+00:00",
        model="m",
        backend="ollama",
        workload="chat",
        quick=True,
        facts=facts.model_dump(mode="json", exclude_none=True),
        knobs={"default": knobs},
        samples=(sample,),
    )


def test_only_plain_measurements_of_this_machine_calibrate() -> None:
    here = machine("16 GB RAM, 20 GB/s, 4 cores")
    model = find_catalog_model("llama3.2:1b")
    then = here.model_copy(update={"model": model})
    elsewhere = machine("16 GB RAM, 20 GB/s, 8 cores").model_copy(update={"model": model})
    records = [
        record(then, 5.0),
        record(elsewhere, 500.0),
        record(then, 900.0, speculation="ngram-mod"),
        record(here, 700.0),
        record(then, 300.0).model_copy(update={"origin": "imported"}),
        record(then, 400.0).model_copy(update={"elsewhere": True}),
    ]
    found = calibrate(records, here, lambda _model, _on_gpu: Estimated(10.0, 9.0, 11.0, "arithmetic", "roofline"))
    assert found.factors.keys() == {False}
    factor, count = found.factors[False]
    assert factor == pytest.approx(0.5)
    assert count == 1
    assert [item.decode_tokens_per_s for item in found.measured.values()] == [pytest.approx(5.0)]


def test_a_damaged_history_costs_its_corrections_and_not_the_recommendation(own_home: Path) -> None:
    paths, said = user_paths(), list[str]()
    paths.data.mkdir(parents=True)
    (paths.data / "history.db").write_bytes(b"\xa5" * 9000)
    facts, profile = machine("16 GB RAM, 20 GB/s, 4 cores"), load_profile("chat")
    speeds = device_speeds(facts, Wish(profile, ollama_default_knobs(facts), backend="ollama"), None, None)
    assert Finder(paths, profile, note=said.append).calibration(facts, speeds) == Calibration()
    (note,) = said
    assert note.startswith("Without this machine's own measurements: the history")
    assert Finder(paths, profile, Path("machine.yaml"), note=said.append).calibration(facts, speeds) == Calibration()
    assert said == [note]


def entry(name: str, level: str) -> dict[str, Any]:
    return {"name": name, "details": {"quantization_level": level}}


def test_ways_to_a_model() -> None:
    best = recommend("16 GB RAM, RTX 4070 12 GB", "llama3.1:8b").best
    assert best is not None
    pull = way_to(best, [])
    made = way_to(best, [entry("llama3.1:8b-instruct-fp16", "F16")])
    there = way_to(best, [entry("llama3.1:8b-instruct-q8_0", "Q8_0")])
    assert pull is not None
    assert made is not None
    assert there is not None
    assert (pull.kind, pull.command) == ("pull", "ollama pull llama3.1:8b-instruct-q8_0")
    assert f"GiB, in the library on {pull.listed}): ollama pull" in render_way(pull)
    assert there.kind == "installed"
    # The library's own name would be taken, so the one that is made here is the same file under it.
    assert (made.kind, made.source, made.name) == (
        "quantize",
        "llama3.1:8b-instruct-fp16",
        "llama3.1:8b-instruct-q8_0",
    )
    assert made_name("tiny-python:latest", "q8_0") == "tiny-python:q8_0"


def test_a_full_disk_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    way = Way("pull", "m", "ollama pull m", needs_bytes=5 * 10**9)
    with pytest.raises(VeloError, match="has only"):
        check_space(way, tmp_path / "not-yet-there", free=lambda _: 10**9)
    assert check_space(way, tmp_path, free=lambda _: 10**11) is None
    assert "unknown" in (check_space(way, None) or "")


def test_pull_and_quantize_through_a_server() -> None:
    said: list[tuple[str, float | None]] = []

    def report(text: str, done: float | None) -> None:
        said.append((text, done))

    with fake_ollama() as fake:
        api = OllamaApi(fake.url)
        try:
            _through(fake, api, report)
        finally:
            api.close()
    assert ("success", None) in said
    assert any(done == 0.5 for _, done in said)


def _through(fake: FakeOllama, api: OllamaApi, report: Any) -> None:
    fake.library.add("lfm2.5:8b")
    pull_model(api, "lfm2.5:8b", report)
    assert fake.find("lfm2.5:8b") is not None
    with pytest.raises(VeloError, match="cannot reach its library"):
        pull_model(api, "tinyllama", report)
    quantize_model(api, "tiny-python:q8_0", "tiny-python", "q8_0", report)
    assert fake.bodies("/api/create")[-1] == {"model": "tiny-python:q8_0", "from": "tiny-python", "quantize": "Q8_0"}
    assert fake.find("tiny-python:q8_0") is not None
    with pytest.raises(VeloError, match="cannot make q5_K_M"):
        quantize_model(api, "x", "tiny-python", "q5_K_M", report)
    fake.refuse["POST /api/pull"] = 500
    with pytest.raises(OllamaRefusalError):
        pull_model(api, "lfm2.5:8b", report)


def test_no_server_is_a_clear_error() -> None:
    api = OllamaApi("http://127.0.0.1:9")
    with pytest.raises(VeloError, match="broke off"):
        pull_model(api, "m", lambda _text, _done: None)
    api.close()


MADE_FOR_CODE = ("coder", "code", "devstral", "codellama", "starcoder", "codestral")
MADE_FOR_PICTURES = ("-vl", "llava")


@pytest.mark.parametrize("machine_text", ["64 GB RAM, 83 GB/s, Ryzen 9 7950X", "16 GB RAM, RTX 4070 12 GB", "8 x H200"])
def test_a_model_that_is_made_for_code_is_not_for_chat(machine_text: str) -> None:
    for profile in ("chat", "team", "throughput", "low-memory"):
        found = recommend(machine_text, profile=profile)
        assert found.best is not None
        for option in (found.best, *found.others):
            assert not any(word in option.name for word in (*MADE_FOR_CODE, *MADE_FOR_PICTURES)), option.name


def test_a_model_that_is_made_for_code_is_for_code_and_agents() -> None:
    for profile in ("code", "agent"):
        found = recommend("48 GB RAM, RTX 4090 24 GB", profile=profile)
        assert found.best is not None
        names = [option.name for option in (found.best, *found.others)]
        assert any(word in name for name in names for word in MADE_FOR_CODE), names
        assert not any(word in name for name in names for word in MADE_FOR_PICTURES), names


def test_a_model_that_is_made_for_something_else_is_better_than_none(monkeypatch: pytest.MonkeyPatch) -> None:
    coders = tuple(row for row in load_catalog() if row.purpose == "code")
    monkeypatch.setattr("velollm.recommend.choose.load_catalog", lambda: coders)
    found = recommend("16 GB RAM, RTX 4070 12 GB", profile="chat")
    assert found.best is not None
    assert "coder" in found.best.name


def test_every_model_with_such_a_name_says_what_it_is_made_for() -> None:
    for row in load_catalog():
        words = f"{row.id} {row.ollama[:1]}"
        expected = "code" if any(word in words for word in MADE_FOR_CODE) else None
        assert row.purpose == ("vision" if "-vl" in words else expected), row.id
