"""Tables of `benchmarks/promise.py`: what was measured, the ratios that were promised, and what this machine bounds."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from velollm.bench.stats import Interval, Ratio, median_interval, ratio_of_rounds
from velollm.report.bench_text import render_interval
from velollm.units import GIB, render_bytes

ARMS = ("f16", "quantized", "drafted", "users")
USERS, DRAFTED = 8, 3
WORDS = {
    "f16": "F16, one slot: the baseline",
    "quantized": "quantized, the plan for one user",
    "drafted": f"the same with a draft, {DRAFTED} tokens at once",
    "users": f"quantized, the plan for {USERS} users",
}
# Of a core, that other programs may take while something is measured; above it the attempt does not count.
MOST_BY_OTHERS = 0.1


def counts(attempt: Mapping[str, Any]) -> bool:
    """Was the processor left alone meanwhile?"""
    return attempt["others_cores"] is not None and attempt["others_cores"] <= MOST_BY_OTHERS


def per_round(document: Mapping[str, Any], arm: str, figure: str) -> dict[int, float]:
    """One figure of one arm by round: the median of the attempts that count."""
    found: dict[int, float] = {}
    for piece in document["pieces"]:
        values = [value for busy, value in figures(piece, figure) if value and busy <= MOST_BY_OTHERS]
        if piece["arm"] == arm and values:
            found[piece["round"]] = statistics.median(values)
    return found


def least_disturbed(document: Mapping[str, Any], arm: str, figure: str) -> tuple[float, float] | None:
    """Cores that others took in the quietest attempt, and its figure."""
    pieces = [piece for piece in document["pieces"] if piece["arm"] == arm]
    return min(((busy, value) for piece in pieces for busy, value in figures(piece, figure) if value), default=None)


def figures(piece: Mapping[str, Any], figure: str) -> Iterator[tuple[float, float | None]]:
    """A figure in one piece: for each attempt, cores that other programs took meanwhile, and its value."""
    kind, _, users = figure.partition("@")
    if kind in piece and not isinstance(piece[kind], list):
        yield 0.0, piece[kind]
        return
    group = "crowds" if users else "greedy" if kind == "greedy" else "singles"
    for attempt in piece[group]:
        busy = attempt["others_cores"]
        if busy is not None and (not users or str(attempt["users"]) == users):
            yield busy, value_of(attempt, kind)


def value_of(attempt: Mapping[str, Any], kind: str) -> float | None:
    if kind == "greedy":
        return float((attempt["predicted_n"] - 1) / attempt["predicted_ms"] * 1000)
    if kind == "prefill":
        return float(attempt["prompt_tokens"] / attempt["prompt_s"])
    if kind == "worst_ttft_s":
        return float(max(attempt["ttfts_s"]))
    if kind == "worst_decode":
        return float(min(rate for rate in attempt["decode_tokens_per_s"] if rate))
    found = attempt[kind]
    return None if found is None else float(found)


def interval(document: Mapping[str, Any], arm: str, figure: str) -> Interval:
    return median_interval(list(per_round(document, arm, figure).values()))


def ratio(document: Mapping[str, Any], arm: str, figure: str, *, base: str = "f16", of: str | None = None) -> Ratio:
    """An arm against the baseline over the rounds that both have; ``of``: the baseline's figure where it is another."""
    ours, theirs = per_round(document, arm, figure), per_round(document, base, of or figure)
    rounds = [([theirs[number]], ours[number]) for number in sorted(ours.keys() & theirs.keys())]
    higher = "ttft" not in figure and not figure.endswith("bytes")
    return ratio_of_rounds(rounds, higher_is_better=higher)


def text(found: Interval | Ratio, factor: float = 1.0, digits: int = 2) -> str:
    if found.estimate is None:
        return "not measured"
    low, high = (None if end is None else end * factor for end in (found.low, found.high))
    return render_interval(found.estimate * factor, low, high, digits)


def cell(document: Mapping[str, Any], arm: str, figure: str, factor: float, digits: int) -> str:
    """A figure with its interval; where no attempt counts, the quietest one, with what others took."""
    found = interval(document, arm, figure)
    if found.estimate is None and (attempt := least_disturbed(document, arm, figure)) is not None:
        return f"{attempt[1] * factor:.{digits}f} (others took {attempt[0]:.1f} cores)"
    return text(found, factor, digits)


ROWS = (
    ("decode, sampled, tokens/s", "decode_tokens_per_s", 1.0, 2),
    ("decode, greedy, tokens/s", "greedy", 1.0, 2),
    ("prefill, tokens/s", "prefill", 1.0, 1),
    ("TTFT, cold prompt, s", "ttft_s", 1.0, 2),
    ("TTFT, cached prompt, ms", "cached_ttft_s", 1000.0, 0),
    ("load, s", "load_s", 1.0, 1),
    ("memory at most, GiB", "peak_bytes", 1 / GIB, 2),
    ("4 users: total tokens/s", "aggregate_tokens_per_s@4", 1.0, 2),
    ("4 users: longest TTFT, s", "worst_ttft_s@4", 1.0, 1),
    ("4 users: slowest decode, tokens/s", "worst_decode@4", 1.0, 2),
    (f"{USERS} users: total tokens/s", f"aggregate_tokens_per_s@{USERS}", 1.0, 2),
    (f"{USERS} users: longest TTFT, s", f"worst_ttft_s@{USERS}", 1.0, 1),
    (f"{USERS} users: slowest decode, tokens/s", f"worst_decode@{USERS}", 1.0, 2),
)


def show(document: Mapping[str, Any]) -> None:
    """Tables in Markdown: what was measured, the ratios that the promise speaks of, and the bounds of this machine."""
    rounds = {name: len([p for p in document["pieces"] if p["arm"] == name]) for name in ARMS}
    print(f"{document['like']}, {document['quantization']}, {document['machine']}, rounds {rounds}\n")
    print("| | " + " | ".join(WORDS[name] for name in ARMS) + " |")
    print("|---" * (len(ARMS) + 1) + "|")
    for title, figure, factor, digits in ROWS:
        cells = [cell(document, name, figure, factor, digits) for name in ARMS]
        print(f"| {title} | " + " | ".join(cells) + " |")
    print("\n| ratio (above 1: better) | |\n|---|---|")
    for title, found in ratios(document):
        print(f"| {title} | {text(found)} |")
    show_bounds(document)


def ratios(document: Mapping[str, Any]) -> Iterator[tuple[str, Ratio]]:
    """The promise's own ratios, each part of it alone first."""
    for figure, words in (("decode_tokens_per_s", "sampled"), ("greedy", "greedy")):
        yield f"decode, {words}: quantization", ratio(document, "quantized", figure)
        yield f"decode, {words}: draft on top of it", ratio(document, "drafted", figure, base="quantized")
        yield f"decode, {words}: both", ratio(document, "drafted", figure)
    yield "TTFT of a cold prompt: quantization", ratio(document, "quantized", "ttft_s")
    yield "TTFT of a cold prompt: with the draft", ratio(document, "drafted", "ttft_s")
    for name in ARMS[1:]:
        yield f"memory: {WORDS[name]}", ratio(document, name, "peak_bytes")
    yield "total of 4 users", ratio(document, "users", "aggregate_tokens_per_s@4")
    yield "longest TTFT of 4 users", ratio(document, "users", "worst_ttft_s@4")
    yield (
        f"total of {USERS} users against 4",
        ratio(document, "users", f"aggregate_tokens_per_s@{USERS}", of="aggregate_tokens_per_s@4"),
    )
    for users in (4, USERS):
        yield (
            f"slowest of {users} users against the one of the baseline",
            ratio(document, "users", f"worst_decode@{users}", of="decode_tokens_per_s"),
        )


def show_bounds(document: Mapping[str, Any]) -> None:
    """What memory and arithmetic allow: bytes read for a token over bandwidth, operations of a prompt over the rate."""
    speeds = [piece["machine"] for piece in document["pieces"] if piece["machine"]]
    if not speeds:
        return
    read, multiply = (max(s[key] for s in speeds) for key in ("read_bytes_per_s", "multiply_flops"))
    print(f"\nThis machine reads {read / 1e9:.1f} GB/s and multiplies {multiply / 1e9:.0f} GFLOPS (float32).\n")
    print("| file | size | read a token | decode at most, tokens/s | operations a prompt token | a prompt of 100 ms |")
    print("|---|---|---|---|---|---|")
    for name, file in document["files"].items():
        bound = read / file["read_bytes_per_token"]
        # Of the unquantized file, which has the same shape: there every weight has the same size.
        shape = document["files"]["draft" if name == "draft" else "f16"]
        operations = shape["operations_per_prompt_token"]
        print(
            f"| {name} | {render_bytes(file['bytes'])} | {render_bytes(file['read_bytes_per_token'])} | {bound:.2f} "
            f"| {operations / 1e9:.1f} G | {multiply * 0.1 / operations:.1f} tokens |"
        )
