"""The thread rule's arithmetic over all kinds of load."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from velollm.facts import CpuFacts, Facts, LoadFacts
from velollm.knobs import Profile, Wish
from velollm.rules.base import Advice
from velollm.rules.threads import decide

WISH = Wish(Profile("test", "", 4096, 1, "chat", "decode"))
LOADS = st.none() | st.floats(0, 300, allow_nan=False)


def advise(cores: int, now: float | None, past: float | None) -> Advice:
    facts = Facts(cpu=CpuFacts(usable_physical_cores=cores), load=LoadFacts(busy_cores_now=now, load_15m=past))
    advice = decide(facts, {}, WISH)
    assert isinstance(advice, Advice)
    return advice


@given(st.integers(1, 256), LOADS, LOADS)
def test_threads_stay_between_one_and_the_cores(cores: int, now: float | None, past: float | None) -> None:
    advice = advise(cores, now, past)
    values = [advice.values["threads"], *(candidate["threads"] for candidate in advice.candidates)]
    assert all(isinstance(value, int) and 1 <= value <= cores for value in values)
    assert len(set(values)) == len(values)


@given(st.integers(1, 64), st.floats(0, 64), st.floats(0, 8), LOADS)
def test_more_load_never_means_more_threads(cores: int, now: float, more: float, past: float | None) -> None:
    light, heavy = advise(cores, now, past).values["threads"], advise(cores, now + more, past).values["threads"]
    assert isinstance(light, int)
    assert isinstance(heavy, int)
    assert heavy <= light


@given(st.integers(2, 64), st.floats(0.5, 64))
def test_a_loaded_past_alone_changes_no_choice(cores: int, past: float) -> None:
    advice = advise(cores, 0.0, past)
    assert advice.values["threads"] == cores
    assert advice.candidates
