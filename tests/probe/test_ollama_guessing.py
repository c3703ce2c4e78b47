"""How much of what an engine guessed was accepted, from its log."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fake_ollama import read_log
from velollm.backends.ollama_log import parse_drafted_answers, parse_speculation
from velollm.probe.ollama_activity import parse_activity
from velollm.probe.ollama_guessing import parse_guessing

KIND = "spec common_specu: adding speculative implementation 'draft-simple'"


def answer(task: int, tokens: int, decode_ms: float, accepted: int, drafted: int, spent_ms: float | None) -> list[str]:
    """The lines of one answer, as llama-server b10488 writes them; ``spent_ms`` is a sum since the load."""
    begin = f"slot print_timing: id  0 | task {task} | "
    lines = [f"{begin}      eval time = {decode_ms:10.2f} ms / {tokens:5d} tokens (   1.00 ms per token)"]
    if drafted:
        lines.append(
            f"{begin}draft acceptance = 0.5 ({accepted:5d} accepted / {drafted:5d} generated), mean len =  2.00"
        )
    if spent_ms is not None:
        lines.append(
            "spec common_specu: statistics     draft-simple: #calls(b,g,a) =    1     51     51, #gen drafts =     51, "
            f"#acc drafts =    41, #gen tokens =    153, #acc tokens =   108, dur(b,g,a) = 0.0, {spent_ms:.3f}, 0.1 ms"
        )
    return lines


def test_a_recorded_log_of_n_grams_and_a_draft() -> None:
    lines = read_log("speculation-ngram-and-draft").splitlines()
    assert parse_speculation(lines) == ("ngram-mod", "draft-simple")
    answers = parse_drafted_answers(lines)
    assert [(one.accepted, one.drafted) for one in answers] == [
        (5, 5), (259, 285), (292, 292), (178, 360), (183, 403),
    ]  # fmt: skip
    assert answers[0].drafting_s == pytest.approx(0.0078, abs=0.0005)
    assert all(one.tokens > one.accepted and (one.drafting_s or 0) < one.decode_s for one in answers)
    found = parse_activity("\n".join(lines)).engine
    assert found is not None and found.guessing is not None
    seen = found.guessing
    assert (seen.answers, seen.drafted, seen.accepted) == (5, 1345, 917)
    assert seen.acceptance == pytest.approx(0.682, abs=0.001)
    assert seen.break_even is not None and 0 < seen.break_even < 0.05
    assert 0 < found.draft_weights_bytes < found.weights_bytes


def test_the_newest_answers_count_and_the_earlier_ones_are_told() -> None:
    lines = [KIND]
    for task in range(30):
        good = task < 10
        lines += answer(task, 101, 5000.0, 90 if good else 10, 100, 100.0 * (task + 1))
    seen = parse_guessing(lines)
    assert seen is not None
    assert (seen.answers, seen.acceptance, seen.earlier_acceptance) == (20, 0.1, 0.9)
    assert (seen.tokens, seen.passes) == (2000, 1800)
    assert seen.drafting_s == pytest.approx(2.0)
    # 1 ms for each guess against 98 s in 1,800 passes.
    assert seen.break_even == pytest.approx(0.001 / (98 / 1800))


def test_answers_without_guesses_neither_count_nor_lend_their_time() -> None:
    lines = [KIND, *answer(1, 51, 2000.0, 20, 40, 50.0), *answer(2, 51, 2000.0, 0, 0, 90.0)]
    lines += answer(3, 51, 2000.0, 10, 40, 120.0)
    assert [one.drafting_s for one in parse_drafted_answers(lines)] == [pytest.approx(0.05), pytest.approx(0.03)]


def test_two_slots_keep_their_answers_apart() -> None:
    one, two = answer(1, 51, 2000.0, 20, 40, None), answer(2, 31, 1000.0, 5, 30, None)
    two = [line.replace("id  0", "id  1") for line in two]
    found = parse_drafted_answers([one[0], two[0], two[1], one[1]])
    assert [(each.tokens, each.drafted) for each in found] == [(30, 30), (50, 40)]
    assert all(each.drafting_s is None for each in found)


def test_without_guessing_there_is_nothing() -> None:
    assert parse_guessing(answer(1, 51, 2000.0, 20, 40, 50.0)) is None
    seen = parse_guessing([KIND])
    assert seen is not None and (seen.answers, seen.acceptance, seen.break_even) == (0, None, None)
    parsed = parse_guessing([KIND, *answer(1, 51, 2000.0, 20, 40, None)])
    assert parsed is not None and parsed.break_even is None


@given(st.lists(st.sampled_from(answer(1, 51, 20.0, 2, 4, 5.0)) | st.text(max_size=80), max_size=30))
def test_any_lines_are_read(lines: list[str]) -> None:
    found = parse_guessing([KIND, *lines])
    assert found is not None and 0 <= found.accepted <= found.drafted
    assert found.answers <= 20
