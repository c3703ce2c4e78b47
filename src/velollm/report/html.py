"""A whole comparison as one HTML page that needs nothing else: no network, no script, no other file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from velollm.bench.result import BenchResult
from velollm.bench.samples import metric_of
from velollm.facts import Facts
from velollm.knobs import Knobs
from velollm.plan import Plan
from velollm.report.bench_charts import render_crowd, render_forest, render_memory, render_samples, render_table
from velollm.report.bench_text import MAIN_METRICS, figure_rows, metric_title, render_noise, render_ratio, title_of
from velollm.report.bug import machine_rows
from velollm.report.html_style import STYLE
from velollm.report.markup import Markup, element, join, raw
from velollm.report.terminal import arm_rows, render_value
from velollm.units import render_duration

# Should markup from outside ever get in, it still could neither run nor load anything.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; form-action 'none'; base-uri 'none'"


@dataclass(frozen=True)
class Subject:
    """What was measured, where and when: ``plans`` by the model's name, ``taken_at`` as it is to be shown.

    ``arms``: for each result the knobs that its arms ran with; empty where they are not known.
    """

    plans: Mapping[str, Plan]
    backend: str
    facts: Facts
    version: str
    taken_at: str | None = None
    arms: Sequence[Mapping[str, Knobs]] = ()


def render_html(results: Sequence[BenchResult], subject: Subject) -> str:
    """The page. The same results and subject give the same bytes."""
    models = ", ".join(subject.plans)
    title = f"{models} on the {subject.backend} engine"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="generator", content=f"VeloLLM {subject.version}"),
        element("title", f"{title}: measured by VeloLLM"),
        element("style", raw(STYLE)),
        between="\n",
    )
    when = f", {subject.taken_at}" if subject.taken_at else ""
    header = element("header", element("h1", title), element("p", f"Measured by VeloLLM {subject.version}{when}."))
    sections = [_result(result, f"r{place}", subject) for place, result in enumerate(results, 1)]
    body = element("main", *sections, _machine(subject), _knobs(results, subject), _reading(), between="\n")
    page = element("html", head, element("body", header, body, between="\n"), lang="en", between="\n")
    return f"<!DOCTYPE html>\n{page}\n"


def _result(result: BenchResult, key: str, subject: Subject) -> Markup:
    """One comparison: what came out first, then what to know about it, then the pictures."""
    parts: list[str] = [element("h2", title_of(result), id=key)]
    verdicts = [element("li", text) for text in _verdicts(result, subject)]
    parts += [element("ul", *verdicts, class_="verdicts")] if verdicts else []
    noise = render_noise(result)
    parts += [element("p", noise)] if noise else []
    parts.append(element("p", _how(result)))
    if result.notes or result.incomplete:
        broken = [f"The run broke off: {result.incomplete}"] if result.incomplete else []
        notes = [element("li", note) for note in (*broken, *result.notes)]
        parts.append(element("section", element("h3", "To know"), element("ul", *notes), class_="notes"))
    forest = render_forest(result, f"{key}-ratios")
    parts += [element("h3", "Ratios"), forest] if forest else []
    parts += [element("h3", "All figures"), _figures(result)]
    parts += _pictures("Every round", [render_samples(result, name, f"{key}-{name}") for name in _single(result)])
    kinds = ("aggregate", "worst_ttft")
    parts += _pictures("Several users at once", [render_crowd(result, kind, f"{key}-{kind}") for kind in kinds])
    parts += _pictures("Memory", [render_memory(result, f"{key}-memory")])
    return element("section", *parts, aria_labelledby=key, between="\n")


def _verdicts(result: BenchResult, subject: Subject) -> Iterator[str]:
    """Each arm in a sentence: the figure that decides for the profile first, then the ones that all runs have."""
    decides = next((plan.profile.metric for plan in subject.plans.values()), "decode")
    for arm, ratios in result.against.items():
        names = [name for name in dict.fromkeys((decides, *MAIN_METRICS)) if name in ratios]
        found = [f"{metric_title(name)[0]} {ratios[name].verdict}, {render_ratio(ratios[name])}" for name in names]
        yield f"{arm} against {result.default}: {'; '.join(found)}."


def _single(result: BenchResult) -> list[str]:
    return [name for name in result.metrics if metric_of(name).users == 0 and not name.endswith("_4")]


def _pictures(title: str, found: Sequence[Markup | None]) -> list[Markup]:
    shown = [part for part in found if part is not None]
    return [element("h3", title), *shown] if shown else []


def _how(result: BenchResult) -> str:
    """How the rounds were laid out."""
    rounds = len({sample.round for sample in result.runs})
    sizes = result.sizes
    words = [
        f"{rounds} rounds in {render_duration(result.elapsed_s)} of {render_duration(result.budget_s)}",
        f"prompts of about {sizes.prompt_tokens:,} and answers of {sizes.decode_tokens:,} tokens",
        *([f"conversations of {sizes.turns} turns"] if sizes.turns > 1 else []),
        *([f"{result.default} measured twice in each round as a control"] if result.control else []),
        *(["a quick look"] if result.quick else []),
    ]
    text = ", ".join(words)
    return f"{text[:1].upper()}{text[1:]}."


def _figures(result: BenchResult) -> Markup:
    rows = [[row.title, *row.arms] for row in figure_rows(result, against=())]
    return render_table("Medians with their 95% intervals", ["figure", *result.arms], rows)


def _machine(subject: Subject) -> Markup:
    rows = [("engine", _engine(subject)), *machine_rows(subject.facts)]
    return element(
        "section", element("h2", "The machine"), render_table("What it ran on", ["part", "what it is"], rows)
    )


def _engine(subject: Subject) -> str:
    server = subject.facts.server
    known = server is not None and server.engine == subject.backend and server.version
    return f"{subject.backend} {server.version}" if server is not None and known else subject.backend


def _knobs(results: Sequence[BenchResult], subject: Subject) -> Markup:
    """Every knob of each model's plan with its reason; says so where the plan did not run."""
    parts: list[Markup] = [element("h2", "The knobs")]
    if not any(result.tuned in result.arms for result in results):
        parts.append(element("p", "The plan was not measured here: this is what VeloLLM would set."))
    for model, plan in subject.plans.items():
        rows = [
            [
                choice.name,
                render_value(choice.name, choice.value),
                render_value(choice.name, plan.defaults.get(choice.name)),
                "none" if choice.value == plan.defaults.get(choice.name) else "changed",
                f"{choice.reason} [{choice.basis}]",
            ]
            for choice in plan.choices
        ]
        heads = ["knob", "value", "engine's default", "change", "why"]
        if rows:
            parts.append(render_table(f"{model}, profile {plan.profile.name}", heads, rows))
    parts += _arms(results, subject)
    return element("section", *parts, between="\n") if len(parts) > 1 else join()


def _arms(results: Sequence[BenchResult], subject: Subject) -> Iterator[Markup]:
    """What each arm ran with, where that is not all in the plan's own table; the same arms once."""
    shown: list[Mapping[str, Knobs]] = []
    for result, arms in zip(results, subject.arms, strict=False):
        others = [arm for arm in arms if arm not in (result.default, result.tuned)]
        if arms in shown or not (others or result.tuned != "tuned") or not any(arms.values()):
            continue
        shown.append(arms)
        # Of a draft's file, as of a model's, no more than its name.
        rows = [[name, *(value.replace("\\", "/").rpartition("/")[2] for value in row)] for name, row in arm_rows(arms)]
        yield render_table(f"What the arms of {title_of(result)} ran with", ["knob", *arms], rows)


def _reading() -> Markup:
    text = (
        "A figure is the median over the rounds, a ratio that of two medians, turned so that above 1 is better. "
        "Intervals are 95%. A difference is called faster or slower only where its whole interval lies beyond 1 and "
        "beyond the machine's own noise. Nothing is dropped: values that lie far out are drawn as diamonds with the "
        "number of their round, and count like all others. An interval that reaches beyond a picture runs to its edge; "
        "the table beside it has its ends."
    )
    return element("section", element("h2", "How to read this"), element("p", text))
