from __future__ import annotations

from dataclasses import replace

import pytest

from velollm.facts import Facts
from velollm.knobs import KNOBS, Knobs, KnobValue, Profile
from velollm.tune.candidates import GROUPS, Candidate, Draft, Ground, groups_of, list_candidates, refine

CHAT = Profile("chat", "", 8192, 1, "chat", "decode")
CODE = replace(CHAT, name="code", speculation=("ngram-mod",))
TEAM = replace(CHAT, name="team", objective="aggregate", slots=4)
CPU = Facts.model_validate({"os": "linux", "cpu": {"physical_cores": 8, "logical_cores": 16}, "gpus": []})
GPU = CPU.model_copy(
    update=Facts.model_validate(
        {"gpus": [{"name": "X", "vram_bytes": 1}], "model": {"name": "m", "layers": 32}}
    ).__dict__
    | {"os": "linux", "cpu": CPU.cpu}
)
BASE: dict[str, KnobValue] = {
    **dict.fromkeys(KNOBS),
    "threads": 8,
    "slots": 1,
    "batch": 512,
    "ubatch": 512,
    "context_tokens": 8192,
    "repack": "on",
    "speculation": "none",
    "kv_unified": "off",
    "flash_attention": "auto",
    "kv_type_k": "f16",
    "kv_type_v": "f16",
    "priority": "normal",
    "load_mode": "none",
    "cache_reuse": 0,
}


def ground(facts: Facts = CPU, profile: Profile = CHAT, **more: object) -> Ground:
    return replace(Ground(facts, profile, frozenset(KNOBS)), **more)  # type: ignore[arg-type]


def values(group: str, base: Knobs = BASE, on: Ground | None = None) -> list[Knobs]:
    return [candidate.values for candidate in list_candidates(group, base, on or ground())]


def test_no_candidate_is_the_setting_itself_and_all_can_be_set() -> None:
    for group in GROUPS:
        for on in (
            ground(),
            ground(GPU, CODE, drafts=(Draft("/d.gguf"),)),
            ground(profile=TEAM, openmp=True, lossy=True),
        ):
            for candidate in list_candidates(group, BASE, on):
                assert any(BASE[name] != value for name, value in candidate.values.items())
                assert set(candidate.values) <= set(KNOBS)
                assert candidate.name


def test_threads_go_down_and_up_to_the_cores() -> None:
    assert values("threads") == [{"threads": 7}, {"threads": 4}, {"threads": 1}]
    assert {"threads": 8} in values("threads", {**BASE, "threads": 1})
    assert values("threads", BASE, ground(Facts())) == []


def test_prompts_may_take_the_second_thread_of_each_core() -> None:
    assert values("batch_threads") == [{"batch_threads": 16}]
    assert values("batch_threads", {**BASE, "threads": 16}) == []


def test_guesses_are_of_drafts_first_then_of_earlier_text() -> None:
    found = values("speculation", on=ground(profile=CODE, drafts=(Draft("/d.gguf"),)))
    assert [value["speculation"] for value in found[:4]] == [*["draft-simple"] * 3, "ngram-mod"]
    assert [(value["speculation_tokens"], value["polling"]) for value in found[:3]] == [(3, 0), (6, 0), (3, None)]
    assert found[0]["draft_model"] == "/d.gguf"
    assert len(found) == 8
    trained = values("speculation", on=ground(drafts=(Draft("/t.gguf", "draft-dflash"),)))
    assert {(v["speculation"], v["draft_model"]) for v in trained[:3]} == {("draft-dflash", "/t.gguf")}


def test_text_that_hardly_repeats_gets_the_short_ones_only() -> None:
    assert all(value["speculation_match"] is not None for value in values("speculation"))
    asked = ground(asked=frozenset({"speculation"}))
    assert len(values("speculation", on=asked)) > len(values("speculation"))
    assert values("speculation", on=asked)[-1]["speculation"] == "ngram-cache"


def test_guesses_that_hardly_help_come_last() -> None:
    assert groups_of(ground())[-1] == "speculation"
    assert sorted(groups_of(ground())) == sorted(GROUPS)
    mtp = Facts.model_validate({"model": {"name": "m", "architecture": "qwen35", "mtp_layers": 1}})
    for on in (
        ground(profile=CODE),
        ground(drafts=(Draft("/d.gguf"),)),
        ground(mtp),
        ground(asked=frozenset({"speculation"})),
    ):
        assert groups_of(on) == GROUPS


def test_layers_for_guessing_are_tried_where_the_model_has_them() -> None:
    model = {"name": "m", "architecture": "qwen35", "mtp_layers": 1}
    facts = Facts.model_validate({"model": model})
    found = [v for v in values("speculation", on=ground(facts)) if v["speculation"] == "draft-mtp"]
    assert [(v["speculation_tokens"], v["polling"]) for v in found] == [(2, 0), (4, 0), (2, None), (4, None)]
    assert "draft-mtp" not in {v["speculation"] for v in values("speculation")}
    skipped = Facts.model_validate({"model": {**model, "architecture": "glm4moe"}})
    assert "draft-mtp" not in {v["speculation"] for v in values("speculation", on=ground(skipped))}


def test_no_guess_is_a_candidate_against_one() -> None:
    assert values("speculation", {**BASE, "speculation": "ngram-mod"})[0]["speculation"] == "none"


def test_slots_only_where_the_total_counts() -> None:
    assert values("slots", {**BASE, "slots": 4}) == []
    assert values("slots", {**BASE, "slots": 4}, ground(profile=TEAM)) == [{"slots": 8}, {"slots": 2}]


def test_batches_stay_within_the_context() -> None:
    assert values("batch") == [{"batch": n, "ubatch": n} for n in (256, 1024, 128)]
    assert values("batch", {**BASE, "context_tokens": 600}) == [{"batch": n, "ubatch": n} for n in (256, 128)]


def test_a_quantized_value_cache_keeps_flash_attention() -> None:
    assert {"flash_attention": "off"} in values("flash_attention")
    assert {"flash_attention": "off"} not in values("flash_attention", {**BASE, "kv_type_v": "q8_0"})


def test_placement_is_for_gpus_and_repacking_is_not() -> None:
    assert values("placement") == []
    assert {"gpu_layers": 0} in values("placement", on=ground(GPU))
    moe = {**BASE, "gpu_layers": 33, "cpu_moe_layers": 8}
    assert {"cpu_moe_layers": 4} in values("placement", moe, ground(GPU))
    ffn = {**BASE, "cpu_ffn_layers": 8}
    assert {"cpu_ffn_layers": 12} in values("placement", ffn, ground(GPU))
    assert values("repack") == [{"repack": "off"}]
    assert values("repack", on=ground(GPU)) == []


@pytest.mark.parametrize("group", ["priority", "load_mode"])
def test_some_are_raced_only_where_they_are_asked_for(group: str) -> None:
    assert values(group) == []
    assert values(group, on=ground(asked=frozenset({group})))


def test_what_can_change_answers_needs_the_word() -> None:
    assert values("kv_type") == values("cache_reuse") == []
    assert all(c.lossy for c in list_candidates("kv_type", BASE, ground(lossy=True)))
    assert values("cache_reuse", on=ground(lossy=True)) == [{"cache_reuse": 256}]


def test_fixed_unsupported_and_too_large_ones_are_left_out() -> None:
    assert values("threads", on=ground(fixed=frozenset({"threads"}))) == []
    assert values("threads", on=ground(supported=frozenset({"batch"}))) == []
    assert values("batch", on=ground(fits=lambda knobs: (knobs["ubatch"] or 0) < 512)) == [
        {"batch": 256, "ubatch": 256},
        {"batch": 128, "ubatch": 128},
    ]
    assert values("threads", on=ground(asked=frozenset({"batch"}))) == []


def test_the_length_of_a_winning_guess_is_refined() -> None:
    won = Candidate("speculation", {"speculation": "draft-simple", "speculation_tokens": 3, "draft_model": "/d.gguf"})
    found = refine(won, {**BASE, **won.values}, ground())
    assert [candidate.values["speculation_tokens"] for candidate in found] == [6, 1]
    mod = Candidate("speculation", {"speculation": "ngram-mod", "speculation_tokens": 16, "speculation_match": 8})
    found = refine(mod, {**BASE, **mod.values}, ground())
    assert [c.values["speculation_match"] for c in found] == [8, 8, 4]
    assert refine(Candidate("threads", {"threads": 4}), BASE, ground()) == ()
    assert refine(mod, {**BASE, **mod.values}, ground(supported=frozenset(KNOBS) - {"speculation_match"})) == ()


def test_a_name_shows_what_is_set() -> None:
    assert Candidate("threads", {"threads": 4}).name == "threads=4"
    draft = {"speculation": "draft-simple", "speculation_match": None, "draft_model": "/long/way/draft.gguf"}
    assert Candidate("speculation", draft).name == "speculation=draft-simple, draft_model=draft.gguf"
    assert Candidate("placement", {"gpu_layers": None}).name == "gpu_layers=engine's own"
