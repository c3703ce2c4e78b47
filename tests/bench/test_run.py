from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import pytest

from tests.bench.simulated import Clock, World, count_words
from velollm.bench.conditions import Conditions, Energy
from velollm.bench.design import Design
from velollm.bench.result import BenchResult, render_result
from velollm.bench.run import DEFAULT_BUDGET, QUICK_BUDGET, BrokenError, Budget, balanced_order, run_bench
from velollm.bench.workload import load_workload
from velollm.errors import VeloError

Law = Mapping[str, Any]
CHAT = load_workload("chat")
BUSY_DEFAULT = {"prefill": 20.0, "decode": 0.7}
BUSY_TUNED = {"prefill": 90.0, "decode": 38.0}


def fly(world: World, default: Law, tuned: Law, **options: Any) -> BenchResult:
    arms = [world.arm("default", **default), world.arm("tuned", **tuned)]
    return run_bench(arms, CHAT, clock=world.clock, **options)


def rounds_of(result: BenchResult, arm: str) -> list[int]:
    return [sample.round for sample in result.runs if sample.arm == arm]


def test_figures_of_a_known_law_come_back() -> None:
    result = fly(World(), {"prefill": 200.0, "decode": 40.0}, {"prefill": 400.0, "decode": 50.0, "slots": 4})
    for sample in result.runs:
        rate, decode = (200.0, 40.0) if sample.arm == "default" else (400.0, 50.0)
        assert sample.prompt_tokens == pytest.approx(result.sizes.prompt_tokens, rel=0.05)
        assert sample.prompt_tokens is not None
        assert sample.ttft_s == pytest.approx(sample.prompt_tokens / rate)
        assert sample.prefill_tokens_per_s == pytest.approx(rate)
        assert sample.decode_tokens_per_s == pytest.approx(decode)
        assert sample.finish == "length"
    assert result.ratios["ttft"].estimate == pytest.approx(2.0)
    assert result.ratios["prefill"].estimate == pytest.approx(2.0)
    assert result.ratios["decode"].estimate == pytest.approx(1.25)
    assert (result.ratios["worst_ttft_4"].estimate or 0) > 4
    measured = {ratio.verdict for ratio in result.ratios.values() if ratio.estimate is not None}
    assert measured == {"faster"}
    assert result.ratios["cached_ttft"].estimate is None
    assert result.summary("default")["decode"].estimate == pytest.approx(40.0)


def test_total_rate_of_four_users_counts_all_tokens_until_the_last() -> None:
    result = fly(World(), {"slots": 1}, {"slots": 4})
    serial, parallel = result.summary("default")["aggregate_4"], result.summary("tuned")["aggregate_4"]
    prompt, decode = result.sizes.aggregate_prompt_tokens, result.sizes.aggregate_decode_tokens
    one_s = prompt / 100 + (decode - 1) / 40
    assert serial.estimate == pytest.approx(decode / one_s, rel=0.05)
    assert parallel.estimate == pytest.approx(4 * decode / one_s, rel=0.05)
    worst_of_serial = result.summary("default")["worst_ttft_4"].estimate
    assert worst_of_serial == pytest.approx(3 * one_s + prompt / 100, rel=0.05)


def test_same_arms_give_no_difference() -> None:
    result = fly(World(), {}, {})
    assert {ratio.verdict for ratio in result.ratios.values()} == {"no difference"}
    assert all(ratio.estimate in (None, pytest.approx(1.0)) for ratio in result.ratios.values())


def test_rounds_are_interleaved_and_share_their_prompt() -> None:
    world = World()
    result = fly(world, {}, {})
    assert rounds_of(result, "default") == rounds_of(result, "tuned") == list(range(result.sizes.rounds))
    assert result.sizes.rounds >= 5
    firsts = [sample.arm for sample in sorted(result.runs, key=lambda s: s.round) if sample.order == 0]
    assert firsts[:4] == ["default", "tuned", "default", "tuned"]
    singles = [(arm, prompt) for arm, prompt, tokens in world.asked if tokens == result.sizes.decode_tokens]
    pairs = list(zip(singles[::2], singles[1::2], strict=True))
    assert [first[0] for first, _ in pairs] == firsts
    assert all(first[1] == second[1] for first, second in pairs)
    prompts = {prompt for _, prompt, _ in world.asked}
    openings = [prompt.split()[0] for prompt in prompts]
    assert len(set(openings)) == len(openings), "two prompts begin with the same word"


def test_balanced_order() -> None:
    assert [balanced_order(2, n) for n in range(4)] == [(0, 1), (1, 0), (0, 1), (1, 0)]
    assert balanced_order(1, 3) == (0,)
    firsts = [balanced_order(3, n)[0] for n in range(6)]
    assert {firsts.count(arm) for arm in range(3)} == {2}


def test_an_arm_under_a_busy_neighbour_fits_the_default_budget() -> None:
    world = World()
    result = fly(world, BUSY_DEFAULT, BUSY_TUNED)
    assert world.clock.now <= DEFAULT_BUDGET.seconds
    assert len(rounds_of(result, "default")) >= 5
    assert result.ratios["decode"].estimate == pytest.approx(38 / 0.7, rel=0.01)
    assert result.ratios["aggregate_4"].pairs >= 3
    assert result.ratios["aggregate_4"].verdict == "faster"
    assert all(s.answer_tokens >= 4 for s in result.runs), "too few tokens for a decode rate"
    assert any("prompts have" in note for note in result.notes)
    assert any("'default' end after 4 tokens" in note for note in result.notes)


@pytest.mark.parametrize("workload", ["chat", "code", "agent", "batch"])
@pytest.mark.parametrize(("default", "tuned"), [(BUSY_DEFAULT, BUSY_TUNED), (BUSY_TUNED, BUSY_TUNED)])
@pytest.mark.parametrize("budget", [DEFAULT_BUDGET, QUICK_BUDGET])
@pytest.mark.parametrize("together", [True, False])
def test_every_workload_fits_its_budget(
    workload: str, default: Law, tuned: Law, budget: Budget, together: bool
) -> None:
    world = World()
    arms = [world.arm("default", 3.0, **default), world.arm("tuned", 3.0, **tuned)]
    result = run_bench(arms, load_workload(workload), budget, clock=world.clock, together=together)
    slack_s = 5.0 if budget.quick else 0.0
    assert world.clock.now <= budget.seconds + slack_s
    if not budget.quick:
        assert len(rounds_of(result, "tuned")) >= 5
    assert result.ratios["decode"].estimate is not None
    assert sorted(world.started) == sorted(world.stopped)


def test_quick_with_a_busy_neighbour_still_gives_a_verdict() -> None:
    world = World()
    result = fly(world, BUSY_DEFAULT, BUSY_TUNED, budget=QUICK_BUDGET)
    assert world.clock.now <= 30
    assert result.ratios["decode"].verdict == "faster"
    assert result.ratios["aggregate_4"].estimate is None
    assert result.ratios["aggregate_4"].verdict == "no difference"
    assert any("left out" in note for note in result.notes)


def test_an_arm_that_slows_down_on_the_way_is_cut_again() -> None:
    world = World()
    result = fly(world, {"pace": lambda n: 1.0 if n < 7 else 0.03}, {})
    assert world.clock.now <= DEFAULT_BUDGET.seconds * 1.1
    assert len(rounds_of(result, "default")) >= 5
    assert any("as time ran short" in note for note in result.notes)
    # The answer that was longer than its time is cut, and the server's last token is waited for.
    assert any(sample.finish == "time" for sample in result.runs)
    assert "Done?" in {prompt for _, prompt, _ in world.asked}


def test_hopelessly_slow_arms_stop_when_time_is_over() -> None:
    world = World()
    slow = {"prefill": 2.0, "decode": 0.15}
    result = fly(world, slow, slow, budget=Budget(90.0))
    assert world.clock.now <= 90 * 1.5
    assert 1 <= len(rounds_of(result, "default")) < 5
    assert any("stopped after" in note for note in result.notes)
    assert rounds_of(result, "default") == rounds_of(result, "tuned")


def test_nothing_measured_within_the_budget_is_an_error() -> None:
    world = World()
    with pytest.raises(VeloError) as caught:
        fly(world, {}, {}, budget=Budget(3.0))
    assert "budget" in caught.value.message
    assert caught.value.hint
    assert sorted(world.stopped) == ["default", "tuned"]


def test_a_failed_request_is_a_failed_sample_and_leaves_its_round_out() -> None:
    # Requests 0 to 2 are the warm-up, so request 4 is the second round's.
    result = fly(World(), {}, {"fault": lambda n: "slot unavailable" if n == 4 else None})
    failed = [sample for sample in result.runs if sample.error]
    assert [(s.arm, s.round, s.error) for s in failed] == [("tuned", 1, "slot unavailable")]
    assert failed[0].ttft_s is None
    assert failed[0].decode_tokens_per_s is None
    assert result.ratios["decode"].pairs == result.sizes.rounds - 1
    assert any("slot unavailable" in note for note in result.notes)


def test_a_failed_user_fails_the_part_with_four_users_only() -> None:
    arm = {"fault": lambda n: "queue full" if n == 9 else None}
    result = fly(World(), {}, arm, budget=Budget(60.0))
    broken = [sample for sample in result.runs if sample.aggregate_error]
    assert len(broken) == 1
    assert broken[0].aggregate_error == "1 of 4 users: queue full"
    assert broken[0].aggregate_4_tokens_per_s is None
    assert broken[0].decode_tokens_per_s == pytest.approx(40.0)
    assert result.ratios["aggregate_4"].pairs == result.sizes.aggregate_rounds - 1


def test_an_arm_that_only_fails_ends_the_comparison() -> None:
    world = World()
    with pytest.raises(VeloError) as caught:
        fly(world, {}, {"fault": lambda n: "out of slots" if n >= 3 else None})
    assert "'tuned' failed 3 times in a row" in caught.value.message
    assert "out of slots" in caught.value.message
    assert caught.value.hint
    assert sorted(world.stopped) == ["default", "tuned"]


def test_an_arm_that_does_not_answer_the_first_request_ends_the_comparison() -> None:
    world = World()
    with pytest.raises(VeloError) as caught:
        fly(world, {}, {"prefill": 0.01})
    assert "'tuned' does not answer" in caught.value.message
    assert world.clock.now < 100


def test_a_server_that_dies_is_named() -> None:
    world = World()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:

        def kill_at_round_two(number: int) -> str | None:
            if number < 5:
                return None
            child.kill()
            child.wait()
            return "connection reset"

        with pytest.raises(VeloError) as caught:
            fly(world, {"pids": (child.pid,), "fault": kill_at_round_two}, {})
    assert "server of 'default' ended" in caught.value.message
    assert "connection reset" in caught.value.message
    assert caught.value.hint
    assert sorted(world.stopped) == ["default", "tuned"]


def test_peak_memory_of_a_real_process_is_in_the_samples() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        result = fly(World(), {"pids": (child.pid,)}, {})
        child.communicate(b"\n")
    peak = result.peak_memory_bytes("default")
    assert peak is not None
    assert peak > 1_000_000
    assert result.peak_memory_bytes("tuned") is None


def test_interrupt_stops_every_server() -> None:
    world = World()

    def interrupt(number: int) -> str | None:
        if number == 3:
            raise KeyboardInterrupt
        return None

    with pytest.raises(KeyboardInterrupt):
        fly(world, {"fault": interrupt}, {})
    assert sorted(world.started) == sorted(world.stopped) == ["default", "tuned"]


def test_servers_that_may_not_be_up_together_are_started_for_each_turn() -> None:
    world = World()
    result = fly(world, {}, {}, together=False)
    assert world.started.count("default") == 1 + result.sizes.rounds
    assert world.started == world.stopped
    assert world.clock.now <= DEFAULT_BUDGET.seconds
    assert len(rounds_of(result, "default")) >= 5


def test_one_arm_has_no_ratio() -> None:
    world = World()
    result = run_bench([world.arm("default")], CHAT, clock=world.clock)
    assert result.ratios == {}
    assert rounds_of(result, "default")


def test_three_arms_compare_by_name() -> None:
    world = World()
    arms = [world.arm("default"), world.arm("current", decode=50.0), world.arm("tuned", decode=60.0)]
    result = run_bench(arms, CHAT, clock=world.clock)
    assert result.ratios["decode"].estimate == pytest.approx(1.5)
    assert {sample.arm for sample in result.runs} == {"default", "current", "tuned"}


def test_names_of_arms_must_differ() -> None:
    world = World()
    with pytest.raises(ValueError, match="differ"):
        run_bench([world.arm("default"), world.arm("default")], CHAT, clock=world.clock)


def test_small_context_cuts_prompts() -> None:
    world = World()
    fly(world, {}, {}, context_tokens=96)
    assert max(count_words(prompt) + tokens for _, prompt, tokens in world.asked) <= 96


def test_client_clock_stands_in_where_the_engine_is_silent() -> None:
    result = fly(World(), {"engine_tells": False}, {"engine_tells": False})
    assert {sample.prefill_basis for sample in result.runs} == {"client"}
    assert result.summary("tuned")["prefill"].estimate == pytest.approx(100.0)


def test_a_cached_prompt_is_told() -> None:
    result = fly(World(), {"cached_tokens": 150}, {}, budget=Budget(600.0))
    assert any("'default' had more than half of the prompt in its cache" in note for note in result.notes)
    assert not any("'tuned' had" in note for note in result.notes)


def test_progress_goes_forward_and_ends_at_one() -> None:
    told: list[tuple[float, str, float]] = []
    fly(World(), BUSY_DEFAULT, BUSY_TUNED, progress=lambda *what: told.append(what))
    shares = [share for share, _, _ in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert all(left >= 0 for _, _, left in told)
    assert any("round 1 of" in text for _, text, _ in told)
    assert any("4 users" in text for _, text, _ in told)


def test_rendered_result_is_json_of_the_promised_shape() -> None:
    data = json.loads(json.dumps(render_result(fly(World(), {}, {"decode": 80.0})), allow_nan=False))
    assert {"ttft", "prefill", "decode", "itl_p50", "turn", "aggregate_4", "worst_ttft_4"} <= set(data["ratio"])
    assert {"estimate", "low", "high", "verdict"} <= set(data["ratio"]["decode"])
    assert data["ratio"]["decode"]["verdict"] == "faster"
    first = data["runs"][0]
    assert {"arm", "workload", "round", "ttft_s", "prefill_tokens_per_s", "decode_tokens_per_s"} <= set(first)
    assert first["workload"] == "chat"
    assert set(data["summary"]) == {"default", "tuned"}


def test_a_control_runs_in_every_round_and_tells_the_noise() -> None:
    world = World()
    result = fly(world, {}, {"decode": 60.0}, design=Design(control=True))
    assert result.arms == ("default", "tuned")
    assert result.control == "default-control"
    assert world.started.count("default") == 2
    assert rounds_of(result, "default-control") == rounds_of(result, "default")
    assert result.noise["decode"].estimate == pytest.approx(1.0)
    assert result.ratios["decode"].floor_basis == "control"
    assert result.ratios["decode"].verdict == "faster"
    assert fly(World(), {}, {}).control is None


def test_rounds_go_on_until_the_intervals_are_narrow() -> None:
    def uneven(number: int) -> float:
        return 1.0 + 0.1 * ((number * 7) % 5 - 2) / 2

    def other(number: int) -> float:
        return uneven(number * 3 + 1)

    wide = fly(World(), {"pace": uneven}, {"pace": other}, budget=Budget(3600.0), design=Design(precision=0.06))
    assert len(rounds_of(wide, "default")) > CHAT.rounds
    for metric in ("decode", "ttft"):
        assert (wide.ratios[metric].interval.reach or 0.0) <= 0.06
    steady = fly(World(), {}, {}, budget=Budget(3600.0), design=Design(precision=0.05))
    assert len(rounds_of(steady, "default")) == CHAT.rounds
    short = fly(World(), {"pace": uneven}, {"pace": other}, budget=Budget(40.0), design=Design(precision=0.001))
    assert any("as the time was over: intervals reach" in note for note in short.notes)


def test_exactly_so_many_rounds() -> None:
    result = fly(World(), {}, {}, budget=Budget(3600.0), design=Design(rounds=11, precision=None))
    assert rounds_of(result, "tuned") == list(range(11))


def test_every_number_of_users_has_its_own_part() -> None:
    result = fly(
        World(),
        {"slots": 1, "crowds": (2, 4)},
        {"slots": 4, "crowds": (2, 4)},
        budget=Budget(900.0),
        design=Design(levels=(2, 4)),
    )
    crowds = next(sample.crowds for sample in result.runs if sample.crowds)
    assert [crowd.users for crowd in crowds] == [2, 4]
    assert {"aggregate_2", "worst_ttft_2", "fairness_2", "fairness_4"} <= set(result.metrics)
    assert (result.ratios["aggregate_4"].estimate or 0) > (result.ratios["aggregate_2"].estimate or 0) > 1.5
    assert (result.ratios["fairness_4"].estimate or 0) > 1
    # One slot serves no more with four users than with two.
    assert result.saturation("default") == 2
    assert result.saturation("tuned") is None
    assert render_result(result)["summary"]["tuned"]["saturation_users"] is None  # type: ignore[index]
    ordered = [name for name in result.metrics if name.rpartition("_")[2] in ("2", "4")]
    assert ordered == [f"{kind}_{n}" for n in (2, 4) for kind in ("aggregate", "worst_ttft", "fairness")]


def test_without_users_at_once_that_part_is_left_out() -> None:
    result = fly(World(), {}, {}, design=Design(levels=()))
    assert all(sample.crowds == () for sample in result.runs)
    assert result.ratios["aggregate_4"].estimate is None
    assert not any("users" in note for note in result.notes)


def test_a_deep_context_is_read_before_each_prompt_and_is_no_part_of_it() -> None:
    world = World()
    result = fly(world, {}, {}, budget=Budget(900.0), design=Design(depth_tokens=512, levels=()))
    deep = [prompt for _, prompt, tokens in world.asked if tokens == result.sizes.decode_tokens]
    fills = [prompt for _, prompt, tokens in world.asked if tokens == 1 and prompt != "Done?"]
    assert len(fills) == 2
    assert count_words(fills[0]) == pytest.approx(512, rel=0.05)
    assert all(prompt.startswith(fills[0]) for prompt in deep)
    assert all(len(prompt) > len(fills[0]) for prompt in deep)


def test_what_breaks_off_keeps_what_was_measured() -> None:
    world = World()
    with pytest.raises(BrokenError) as caught:
        fly(world, {}, {"fault": lambda n: "out of slots" if n >= 6 else None})
    partial = caught.value.partial
    assert partial.incomplete == caught.value.message
    assert "out of slots" in caught.value.message
    assert len(rounds_of(partial, "default")) >= 3
    assert render_result(partial)["incomplete"] == partial.incomplete


class Weather:
    """A machine that swaps, is hot and busy, and counts its energy by the clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.looks = 0

    def energy(self) -> Energy | None:
        return Energy(50.0 * self.clock(), "the clock")

    def gpu_bytes(self, pids: Sequence[int]) -> int | None:
        return 7 << 20

    def look(self) -> Conditions:
        self.looks += 1
        return Conditions(1.2, self.looks * (64 << 20), self.looks, True, True)


def test_disturbances_are_told_with_what_to_do() -> None:
    world = World()
    weather = Weather(world.clock)
    result = fly(world, {}, {}, machine=weather)
    assert weather.looks == len(rounds_of(result, "default")) + 1
    for words in ("took up to 1.2 cores", "swapped", "slowed down for heat", "a GPU was slowed", "on battery"):
        assert any(words in note for note in result.notes), words
    first = result.runs[0]
    assert first.answer_s is not None
    assert first.energy_j == pytest.approx(50.0 * first.answer_s)
    assert result.energy_j_per_token("default") == pytest.approx(50.0 * first.answer_s / first.answer_tokens, rel=0.05)
    assert result.gpu_memory_bytes("tuned") == 7 << 20
    quiet = fly(World(), {}, {})
    assert quiet.conditions == ()
    assert quiet.energy_j_per_token("default") is None


def test_rounds_that_differ_much_are_called_unstable() -> None:
    result = fly(World(), {"pace": lambda n: 1.0 if n % 2 else 0.6}, {}, budget=Budget(900.0))
    assert any(note.startswith("unstable: the rounds of 'default' spread by") for note in result.notes)
    assert not any("'tuned' spread" in note for note in result.notes)


def test_the_first_start_is_timed() -> None:
    result = fly(World(), {}, {})
    assert [start.arm for start in result.starts] == ["default", "tuned"]
    assert result.load_s("default") == pytest.approx(2.0)
    cold_s = result.cold_ttft_s("default")
    assert cold_s is not None
    assert cold_s > 2.0


def test_a_conversation_sends_all_that_was_said() -> None:
    world = World()
    arms = [world.arm("default"), world.arm("tuned")]
    workload = load_workload("conversation")
    result = run_bench(arms, workload, Budget(900.0), clock=world.clock, design=Design(levels=()))
    asked = [prompt for arm, prompt, tokens in world.asked if tokens == result.sizes.decode_tokens and arm == "tuned"]
    talks = [asked[place : place + workload.turns] for place in range(0, len(asked), workload.turns)]
    for turns in talks:
        assert all(later.startswith(earlier) for earlier, later in pairwise(turns))
        assert len({turn[-40:] for turn in turns}) == workload.turns
    first = result.runs[0]
    assert first.answer_tokens == workload.turns * result.sizes.decode_tokens
    assert first.decode_tokens_per_s == pytest.approx(40.0)
    assert first.cached_ttft_s is not None
    assert result.summary("tuned")["turn"].estimate is not None


def test_a_prompt_is_asked_again_for_its_cached_ttft() -> None:
    world = World()
    result = fly(world, {}, {}, design=Design(whole=True, levels=()))
    first = result.runs[0]
    assert first.cached_ttft_s == pytest.approx(first.ttft_s)
    slow = fly(World(), {"pace": lambda n: 1.0 if n < 9 else 0.03}, {}, design=Design(whole=True, levels=()))
    assert any("as time ran short" in note for note in slow.notes)
    assert all(sample.cached_ttft_s is not None for sample in slow.runs if not sample.error)
    prompts = [prompt for arm, prompt, _ in world.asked if arm == "default"]
    assert len(prompts) - len(set(prompts)) >= result.sizes.rounds
