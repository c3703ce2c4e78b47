from __future__ import annotations

import pytest

from velollm.backends.base import Completion, EngineCounters
from velollm.bench.contender import with_counters

OLLAMAS = Completion(((0.1, 1), (0.2, 2)), "length", fresh_prompt_tokens=100, prompt_s=0.05)


def test_cached_tokens_are_told_apart_by_the_engines_own_counter() -> None:
    found = with_counters(OLLAMAS, EngineCounters(500), EngineCounters(504))
    assert (found.fresh_prompt_tokens, found.cached_prompt_tokens) == (4, 96)


def test_drafts_that_the_answer_does_not_tell_come_from_the_counters() -> None:
    found = with_counters(OLLAMAS, EngineCounters(0, 10, 5), EngineCounters(100, 50, 35))
    assert (found.drafted_tokens, found.accepted_tokens) == (40, 30)


def test_an_answer_that_was_cut_has_at_least_its_fresh_tokens() -> None:
    cut = Completion(((0.1, 1),), "time")
    found = with_counters(cut, EngineCounters(0), EngineCounters(17))
    assert (found.fresh_prompt_tokens, found.cached_prompt_tokens) == (17, None)


@pytest.mark.parametrize("counters", [None, EngineCounters(500)])
def test_counters_that_stand_still_or_are_not_there_change_nothing(counters: EngineCounters | None) -> None:
    assert with_counters(OLLAMAS, counters, counters) == OLLAMAS


def test_what_the_answer_tells_itself_is_left() -> None:
    told = Completion(((0.1, 1),), "length", fresh_prompt_tokens=7, cached_prompt_tokens=3, drafted_tokens=4)
    assert with_counters(told, EngineCounters(0), EngineCounters(99, 50, 50)) == told
