"""Comparisons as Markdown to show and as CSV to work with."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, fields

from velollm.bench.result import BenchResult
from velollm.bench.samples import Sample
from velollm.report.bench_text import figure_rows, title_of


def render_markdown(results: Sequence[BenchResult]) -> str:
    """One table for each comparison: a row a figure, a column an arm, and each arm's ratio to the first."""
    blocks = []
    for result in results:
        others = list(result.against)
        heads = ["", *result.arms, *(f"{arm}: ratio" for arm in others)]
        lines = [_row(heads), _row(["---"] * len(heads))]
        for row in figure_rows(result):
            cells = [row.title, *row.arms, *(f"{ratio}, {verdict}" for ratio, verdict in row.ratios)]
            lines.append(_row([*cells, *[""] * (len(heads) - len(cells))]))
        notes = [f"- {note}" for note in result.notes]
        blocks.append("\n".join([f"## {title_of(result)}", "", *lines, *([""] if notes else []), *notes]))
    return "\n\n".join(blocks) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def render_csv(results: Sequence[BenchResult]) -> str:
    """Every raw sample, one a line; parts with several users have one more line each, named by ``users``."""
    own = [field.name for field in fields(Sample) if field.name != "crowds"]
    crowd = ["users", "users_tokens_per_s", "users_worst_ttft_s", "users_fairness"]
    out = io.StringIO()
    writer = csv.DictWriter(out, ["depth_tokens", *own, *crowd], lineterminator="\n", restval="")
    writer.writeheader()
    for result in results:
        for sample in result.runs:
            values = {name: value for name, value in asdict(sample).items() if name in own and value is not None}
            line = {"depth_tokens": result.depth_tokens, **values}
            writer.writerow({**line, "users": 1})
            place = {name: line[name] for name in ("depth_tokens", "arm", "workload", "round", "order")}
            for part in sample.crowds:
                figures = (part.users, part.tokens_per_s, part.worst_ttft_s, part.fairness)
                writer.writerow({**place, **dict(zip(crowd, figures, strict=True)), "error": part.error or ""})
    return out.getvalue()
