"""Plans on a backend that only turns knobs into settings."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import yaml

from velollm.backends.base import Backend, ModelRef, Progress, RunningServer, Setting
from velollm.errors import UsageError, VeloError
from velollm.facts import Facts
from velollm.knobs import KNOBS, Knobs, KnobValue, Profile
from velollm.plan import (
    Plan,
    _parse_profile,
    list_profiles,
    load_profile,
    load_rules,
    make_plan,
    order_rules,
    without_speed_knobs,
)
from velollm.rules.base import Advice, Rule

DEFAULTS: Mapping[str, KnobValue] = {
    "threads": 2,
    "context_tokens": 4096,
    "slots": 1,
    "kv_type_k": "f16",
    "kv_type_v": "f16",
    "kv_unified": "off",
    "kv_offload": "on",
    "gpu_layers": None,
    "cpu_moe_layers": None,
    "cpu_ffn_layers": None,
    "flash_attention": "auto",
    "batch": 512,
    "ubatch": 512,
    "keep_alive_s": 300,
    "load_mode": "none",
    "batch_threads": None,
    "repack": "on",
    "openmp_wait": None,
    "speculation": "none",
    "speculation_tokens": None,
    "speculation_match": None,
    "draft_model": None,
    "cache_reuse": 0,
    "polling": None,
    "priority": "normal",
    "max_loaded_models": 3,
}
MODELS = yaml.safe_load((Path(__file__).parent / "rules" / "models.yaml").read_text(encoding="utf-8"))
BUSY = {"busy_cores_now": 1.0, "load_15m": 1.0}
IDLE = {"busy_cores_now": 0.0, "load_15m": 0.0}


class PaperBackend(Backend):
    """Renders each knob that is not at its default as ``NAME=value``, and runs nothing."""

    name = "paper"

    def __init__(self, *without: str, **defaults: KnobValue) -> None:
        self.knobs = frozenset(KNOBS) - set(without)
        self._defaults = {**DEFAULTS, **defaults}

    def missing(self) -> str | None:
        return None

    def find_model(self, name: str) -> ModelRef:
        return ModelRef(name, None)

    def default_knobs(self, facts: Facts) -> Knobs:
        return self._defaults

    def render(self, knobs: Knobs, facts: Facts) -> tuple[Setting, ...]:
        return tuple(
            Setting("environment" if KNOBS[name].scope == "server" else "engine", name.upper(), str(value), name)
            for name, value in knobs.items()
            if name in self.knobs and value is not None and value != self._defaults[name]
        )

    def trial(
        self, model: ModelRef, knobs: Knobs, facts: Facts, *, log: Path, port: int = 0, progress: Progress | None = None
    ) -> AbstractContextManager[RunningServer]:
        raise VeloError("a paper engine does not run")


def facts(load: Mapping[str, float] = BUSY) -> Facts:
    return Facts.model_validate(
        {
            "os": "linux",
            "cpu": {"physical_cores": 2, "usable_physical_cores": 2, "usable_cores": 2},
            "memory": {"total_bytes": 17_000_000_000, "available_bytes": 12_000_000_000},
            "gpus": [],
            "load": load,
            "model": MODELS["small"],
        }
    )


def plan(profile: str = "chat", backend: Backend | None = None, **kwargs: object) -> Plan:
    return make_plan(facts(), backend or PaperBackend(), load_profile(profile), **kwargs)  # type: ignore[arg-type]


def rule(name: str, sets: tuple[str, ...], needs: tuple[str, ...] = ()) -> Rule:
    return Rule(name, sets, lambda facts, knobs, wish: Advice({}, ""), needs)


def test_every_profile_loads_and_says_what_it_is_for() -> None:
    assert list_profiles() == ("agent", "chat", "code", "low-memory", "team", "throughput")
    for name in list_profiles():
        profile = load_profile(name)
        assert profile.name == name
        assert profile.summary
        assert 0 <= profile.accepted_price < 0.5
    assert load_profile("code").speculation
    assert not load_profile("chat").speculation


def test_the_workloads_of_the_profiles_exist() -> None:
    from velollm.config import data_dir

    for name in list_profiles():
        assert (data_dir("workloads") / f"{load_profile(name).workload}.yaml").is_file()


def test_an_unknown_profile_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="no profile 'fast'") as caught:
        load_profile("fast")
    assert "low-memory" in caught.value.hint


GOOD = "summary: s\ncontext_tokens: 8192\nslots: 1\nworkload: chat\nmetric: decode\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- a list",
        GOOD + "speed: 11\n",
        GOOD.replace("decode", "smell"),
        GOOD.replace("8192", "many"),
        GOOD.replace("slots: 1", "slots: 0"),
        GOOD + "speculation: [magic]\n",
        GOOD + "minimum_context_tokens: 9000\n",
        GOOD + "keep_alive_s: soon\n",
        "summary: s\n",
    ],
)
def test_a_damaged_profile_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        _parse_profile("test", text)


def test_a_good_profile_is_taken() -> None:
    assert _parse_profile("test", GOOD) == Profile("test", "s", 8192, 1, "chat", "decode")


def test_every_knob_has_exactly_one_rule() -> None:
    owned = [knob for rule in load_rules() for knob in rule.sets]
    assert sorted(owned) == sorted(KNOBS)


def test_a_need_is_set_before_it_is_read() -> None:
    first = rule("z-first", ("threads",))
    last = rule("a-last", ("batch",), ("threads",))
    assert order_rules([last, first]) == (first, last)
    for index, ordered in enumerate(rules := load_rules()):
        before = {knob for earlier in rules[:index] for knob in earlier.sets}
        assert set(ordered.needs) <= before


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([rule("a", ("threads",)), rule("b", ("threads",))], "a and b both own threads"),
        ([rule("a", ("threads",), ("slots",))], "needs slots, which no rule sets"),
        ([rule("a", ("colour",))], "which is no knob"),
        ([rule("a", ("threads",), ("slots",)), rule("b", ("slots",), ("threads",))], "circle: a, b"),
    ],
)
def test_rules_that_cannot_be_ordered(rules: list[Rule], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        order_rules(rules)


def test_a_plan_has_a_reasoned_choice_for_every_knob() -> None:
    made = plan()
    assert [choice.name for choice in made.choices] == list(KNOBS)
    assert all(choice.reason for choice in made.choices)
    assert made.knobs["threads"] == 1
    assert made.knobs["context_tokens"] == 8192
    assert made.knobs["keep_alive_s"] == 1800
    assert made.knobs["speculation"] == "none"
    assert "max-loaded-models" in made.skipped
    assert {"threads": 2} in made.candidates


def test_with_the_machine_idle_all_threads_stay() -> None:
    made = make_plan(facts(IDLE), PaperBackend(), load_profile("chat"))
    assert made.knobs["threads"] == 2
    assert "THREADS" not in {change.key for change in made.changes}


def test_an_unknown_machine_keeps_every_default_that_needs_facts() -> None:
    made = make_plan(Facts(), PaperBackend(), load_profile("chat"))
    assert made.knobs == {**DEFAULTS, "keep_alive_s": 1800}
    assert made.skipped["fit-memory"].lacked == ("model",)


def test_changes_are_what_differs_from_now() -> None:
    now = {("environment", "THREADS"): "1", ("engine", "CONTEXT_TOKENS"): "2048"}
    changes = {change.key: change for change in plan(current_settings=now).changes}
    assert "THREADS" not in changes
    assert changes["CONTEXT_TOKENS"].before == "2048"
    assert changes["CONTEXT_TOKENS"].after == "8192"
    assert changes["KEEP_ALIVE_S"].before is None
    assert changes["KEEP_ALIVE_S"].reason
    assert changes["KEEP_ALIVE_S"].target == "environment"


def test_a_setting_that_the_plan_wants_at_its_default_goes_away() -> None:
    made = make_plan(
        facts(IDLE),
        PaperBackend(),
        load_profile("chat"),
        current={**DEFAULTS, "threads": 1},
        current_settings={("environment", "THREADS"): "1", ("environment", "OTHER"): "x"},
    )
    gone = [change for change in made.changes if change.after is None]
    assert [(change.key, change.before) for change in gone] == [("THREADS", "1")]


def test_what_no_rule_speaks_of_stays_as_the_user_has_it() -> None:
    made = plan(current={**DEFAULTS, "max_loaded_models": 7})
    assert made.knobs["max_loaded_models"] == 7
    assert next(c for c in made.choices if c.name == "max_loaded_models").reason.startswith("left as you have it")


def test_what_another_profile_left_behind_is_put_back() -> None:
    now = {("environment", "SPECULATION"): "ngram-mod"}
    made = plan(current={**DEFAULTS, "speculation": "ngram-mod"}, current_settings=now)
    assert made.knobs["speculation"] == "none"
    assert [change.before for change in made.changes if change.after is None] == ["ngram-mod"]


def test_a_quantized_cache_that_the_user_has_is_not_taken_away() -> None:
    made = plan(current={**DEFAULTS, "kv_type_k": "q8_0", "kv_type_v": "q8_0"})
    assert (made.knobs["kv_type_k"], made.knobs["kv_type_v"]) == ("q8_0", "q8_0")


def test_nothing_that_changes_answers_is_chosen_unasked() -> None:
    for profile in list_profiles():
        made = plan(profile)
        assert all(made.knobs[name] == DEFAULTS[name] for name, knob in KNOBS.items() if knob.changes_answer)


def test_pins_win() -> None:
    made = plan(pins={"threads": 2, "context_tokens": 1000, "keep_alive_s": 0})
    assert (made.knobs["threads"], made.knobs["context_tokens"], made.knobs["keep_alive_s"]) == (2, 1000, 0)
    assert {c.basis for c in made.choices if c.name in ("threads", "keep_alive_s")} == {"user"}


def test_pins_win_where_the_rule_knows_too_little() -> None:
    pins: dict[str, KnobValue] = {"context_tokens": 1000, "ubatch": 64}
    made = make_plan(Facts(), PaperBackend(), load_profile("chat"), pins)
    assert "fit-memory" in made.skipped
    assert (made.knobs["context_tokens"], made.knobs["ubatch"]) == (1000, 64)
    assert (made.knobs["slots"], made.knobs["batch"]) == (1, 512)
    assert {c.name for c in made.choices if c.basis == "user"} >= set(pins)


def test_a_pin_that_the_backend_lacks_names_its_knobs() -> None:
    with pytest.raises(UsageError, match="no knob 'keep_alive_s'") as caught:
        plan(backend=PaperBackend("keep_alive_s"), pins={"keep_alive_s": 5})
    assert "threads" in caught.value.hint
    assert "keep_alive_s" not in caught.value.hint


def test_a_plan_speaks_only_of_the_backends_knobs() -> None:
    made = plan("code", PaperBackend("speculation", "slots"))
    assert {"speculation", "slots"}.isdisjoint(made.knobs)
    assert {"speculation", "slots"}.isdisjoint({key for overlay in made.candidates for key in overlay})


def test_speed_knobs_go_back_and_what_enables_stays() -> None:
    backend = PaperBackend()
    made = plan("code", backend)
    assert made.knobs["speculation"] == "ngram-mod"
    proved = without_speed_knobs(made, facts(), backend)
    assert proved.knobs["speculation"] == "none"
    assert proved.knobs["threads"] == 2
    assert proved.knobs["context_tokens"] == made.knobs["context_tokens"] == 16384
    assert next(c for c in proved.choices if c.name == "threads").reason == "not proved faster here"
    assert {change.key for change in proved.changes} == {"CONTEXT_TOKENS", "KEEP_ALIVE_S"}


def test_pinned_speed_knobs_stay() -> None:
    backend = PaperBackend()
    made = plan("code", backend, pins={"threads": 1, "ubatch": 1024})
    kept = without_speed_knobs(made, facts(), backend).knobs
    assert (kept["threads"], kept["batch"], kept["ubatch"]) == (1, 1024, 1024)
    assert kept["speculation"] == "none"


def test_unproved_means_as_it_runs_now() -> None:
    backend = PaperBackend()
    made = make_plan(facts(IDLE), backend, load_profile("chat"), current={**DEFAULTS, "threads": 1})
    assert made.knobs["threads"] == 2
    assert without_speed_knobs(made, facts(IDLE), backend).knobs["threads"] == 1


def test_flash_attention_stays_where_the_cache_needs_it() -> None:
    backend = PaperBackend()
    made = plan(pins={"kv_type_k": "q8_0", "kv_type_v": "q8_0"}, current={**DEFAULTS, "flash_attention": "off"})
    assert made.knobs["flash_attention"] == "auto"
    assert without_speed_knobs(made, facts(), backend).knobs["flash_attention"] == "auto"
