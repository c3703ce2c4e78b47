"""The part of `velollm bench` that measures nothing: what the history has. It is no command of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from velollm.cli.shared import console, print_json
from velollm.errors import UsageError

if TYPE_CHECKING:
    from velollm.bench.history import History, Record
    from velollm.bench.trend import Trend


@dataclass(frozen=True)
class Look:
    """What of the history is asked for; nothing of it: measure."""

    list_all: bool = False
    show: str | None = None
    compare: tuple[str, str] | None = None
    since: str | None = None

    @property
    def wanted(self) -> bool:
        """Is anything of the history asked for?"""
        return self.list_all or self.show is not None or self.compare is not None or self.since is not None


def look_back(look: Look, models: Sequence[str], *, as_json: bool) -> Record | None:
    """Print what was asked for; the result that is shown whole, where one is.

    Raises:
        UsageError: there is no such result, or more than one thing was asked for.
        VeloError: the history cannot be read.
    """
    from velollm.bench.history import read_history
    from velollm.config import user_paths

    kinds = (look.list_all or look.since is not None, look.show is not None, look.compare is not None)
    if sum(kinds) > 1:
        raise UsageError("one look at a time", "choose one of --list, --show and --compare")
    history = read_history(user_paths().data)
    if look.show is not None:
        record = history.find(look.show)
        _show(record, as_json=as_json)
        return record
    if look.compare is not None:
        _compare(history.find(look.compare[0]), history.find(look.compare[1]), history, as_json=as_json)
    else:
        _list(history, look.since, models, as_json=as_json)
    return None


def _list(history: History, when: str | None, models: Sequence[str], *, as_json: bool) -> None:
    from datetime import UTC, datetime

    from velollm.bench.since import since
    from velollm.bench.trend import find_trends

    shown, own = list(history.all), list(history.records)
    if when is not None:
        now = datetime.now(UTC)
        shown, own = list(since(shown, when, now)), list(since(own, when, now))
    shown, own = [record for record in shown if _is_of(record, models)], [r for r in own if _is_of(r, models)]
    trends = find_trends(history.records, None if when is None else own)
    trends = tuple(trend for trend in trends if any(trend.newest == record.id for record in own))
    if as_json:
        from velollm.report.documents import record_fields, trend_fields

        results, found = [record_fields(record) for record in shown], [trend_fields(trend) for trend in trends]
        print_json({"results": results, "trends": found, "damaged": history.damaged})
        return
    from velollm.report.bench_history import render_list

    console().print(render_list(shown, history))
    print_trends(trends)


def _is_of(record: Record, models: Sequence[str]) -> bool:
    from velollm.report.bench_history import model_name

    names = record.model.split(", ")
    return not models or any(model in names or model in map(model_name, names) for model in models)


def print_trends(trends: Sequence[Trend]) -> None:
    """What a version of the engine changed, where something is proved."""
    from velollm.report.bench_history import trend_lines

    if lines := trend_lines(trends):
        console().print()
        for line in lines:
            console().print(line, soft_wrap=True)


def trends_to(records: Sequence[Record]) -> tuple[Trend, ...]:
    """The trends that end in results that were just taken. A history that cannot be read was told of before."""
    from velollm.bench.history import read_history
    from velollm.bench.trend import trends_of
    from velollm.config import user_paths
    from velollm.errors import VeloError

    try:
        known = read_history(user_paths().data).records
    except VeloError:
        return ()
    return tuple(trend for record in records for trend in trends_of(known, record))


def _show(record: Record, *, as_json: bool) -> None:
    if as_json:
        from velollm.report.documents import whole_record_fields

        print_json(whole_record_fields(record))
        return
    from velollm.bench.history import result_of
    from velollm.report.bench_history import render_arms, title_of_record
    from velollm.report.terminal import render_comparison

    out = console()
    out.print(f"{title_of_record(record)}\n", soft_wrap=True)
    if record.incomplete:
        out.print(f"The run broke off: {record.incomplete}\n", soft_wrap=True)
    out.print(render_comparison(result_of(record)))
    if any(record.knobs.values()):
        out.print()
        out.print(render_arms(record.knobs))


def _compare(before: Record, after: Record, history: History, *, as_json: bool) -> None:
    from velollm.bench.apart import compare_records, differences_of, disturbances_of

    found, differences = compare_records(before, after, history.records), differences_of(before, after)
    disturbances = disturbances_of(before, after)
    if as_json:
        from velollm.report.documents import apart_fields

        document: dict[str, Any] = {"before": before.id, "after": after.id, "interleaved": False}
        document |= {"differences": list(differences), "disturbances": list(disturbances)}
        print_json({**document, "arms": [apart_fields(item) for item in found]})
        return
    from velollm.report.bench_history import render_apart

    console().print(render_apart(found, differences, disturbances))
