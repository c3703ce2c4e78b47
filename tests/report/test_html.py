"""The page of a comparison: it says what was measured, needs nothing else, and nothing from outside becomes markup."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bench.simulated import World
from velollm.bench.design import Design
from velollm.bench.result import BenchResult, Start
from velollm.bench.run import Arm, Budget, run_bench
from velollm.bench.samples import CrowdFigures, Sample
from velollm.bench.stats import compare_arms, outliers_of
from velollm.bench.workload import load_workload
from velollm.facts import CpuFacts, Facts, GpuFacts, MemoryFacts, ServerFacts
from velollm.knobs import Choice, Knobs
from velollm.plan import Plan, load_profile
from velollm.report.bench_text import render_ratio
from velollm.report.html import Subject, render_html
from velollm.report.html_style import DARK, LIGHT

VOID = {"meta", "br"}
FACTS = Facts(
    os="linux",
    cpu=CpuFacts(model_name="Example 9000", architecture="x86_64", physical_cores=8),
    memory=MemoryFacts(total_bytes=32 << 30),
    gpus=(GpuFacts(name="Example GPU", vram_bytes=24 << 30),),
    environment={"OLLAMA_API_KEY": "do-not-tell"},
    server=ServerFacts(engine="ollama", version="1.2.3", url="http://10.1.2.3:11434", user="alice"),
)


class Page(HTMLParser):
    """Tags with their attributes in order, ids, and all text; fails where elements do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.ids: list[str] = []
        self.referred: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.referred += [word for name, value in attrs if name == "aria-labelledby" for word in (value or "").split()]
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def measured(*arms: Arm, world: World, levels: tuple[int, ...] = (2, 4)) -> BenchResult:
    design = Design(levels=levels, control=True, whole=True)
    return run_bench(arms, load_workload("chat"), Budget(900.0), clock=world.clock, design=design)


def subject(*models: str, reason: str = "because it is so", facts: Facts = FACTS) -> Subject:
    plan = Plan("ollama", load_profile("chat"), (Choice("threads", 4, reason, "arithmetic"),), {"threads": 8})
    return Subject(dict.fromkeys(models or ("llama3.2",), plan), "ollama", facts, "9.8.7", "2030-01-02 03:04 UTC")


def svgs(text: str) -> list[ET.Element]:
    return [ET.fromstring(part) for part in re.findall(r"<svg .*?</svg>", text, re.DOTALL)]


def marks(drawn: ET.Element, *classes: str) -> int:
    return sum(part.get("class") in classes for part in drawn.iter())


@pytest.fixture(scope="module")
def result() -> BenchResult:
    world = World()
    arms = [world.arm("default", slots=2, crowds=(2, 4)), world.arm("current", decode=38.0, slots=2, crowds=(2, 4))]
    arms.append(world.arm("tuned", decode=60.0, slots=4, crowds=(2, 4)))
    found = measured(*arms, world=world)
    starts = tuple(Start(arm, 1.5, 2.5, {"weights": 900 << 20, "kv": 90 << 20}) for arm in found.arms)
    return replace(
        found,
        runs=tuple(_with_an_outlier(replace(sample, peak_memory_bytes=1 << 30)) for sample in found.runs),
        starts=starts,
        notes=("read the figures with care",),
    )


def _with_an_outlier(sample: Sample) -> Sample:
    return replace(sample, decode_tokens_per_s=12.0) if (sample.arm, sample.round) == ("tuned", 2) else sample


@pytest.fixture(scope="module")
def few(result: BenchResult) -> BenchResult:
    """Too few rounds for intervals, so a page of them is made at once."""
    return replace(result, runs=tuple(sample for sample in result.runs if sample.round < 2))


@pytest.fixture(scope="module")
def text(result: BenchResult) -> str:
    return render_html([result], subject())


def test_it_is_a_whole_document_with_everything_in_its_place(result: BenchResult, text: str) -> None:
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>\n<html lang=")
    assert (page.count("h1"), page.count("title") - page.count("svg")) == (1, 1)
    assert page.count("figure") == page.count("svg") > 8
    assert page.count("figcaption") == page.count("figure")
    for title in ("Ratios", "All figures", "Every round", "Several users at once", "Memory", "The machine"):
        assert title in page.text
    for words in (
        "llama3.2 on the ollama engine",
        "read the figures with care",
        "Example 9000",
        "Example GPU",
        "1.2.3",
    ):
        assert words in page.text
    for words in ("threads", "because it is so [arithmetic]", "9.8.7", "2030-01-02 03:04 UTC"):
        assert words in page.text


def test_every_picture_says_what_it_shows_and_has_a_table(text: str) -> None:
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    assert set(page.referred) <= set(page.ids)
    for drawn in svgs(text):
        title, description = drawn.find("title"), drawn.find("desc")
        assert title is not None and title.text
        assert description is not None and description.text
        assert drawn.get("role") == "img"
    for figure in re.findall(r"<figure>.*?</figure>", text, re.DOTALL):
        assert "<table>" in figure


def test_nothing_is_loaded_or_run_and_nothing_personal_is_said(text: str) -> None:
    assert {name for name, _ in Page(text).tags} & {"script", "link", "img", "iframe", "a", "object", "form"} == set()
    attributes = {name for _, names in Page(text).tags for name in names}
    assert not {name for name in attributes if name.startswith("on") or name in ("src", "href", "style", "action")}
    assert "//" not in text
    assert "url(" not in text and "@import" not in text
    for words in ("do-not-tell", "10.1.2.3", "alice"):
        assert words not in text


def test_numbers_are_those_of_the_result(result: BenchResult, text: str) -> None:
    page = Page(text)
    ratio = compare_arms(result.runs, "default", "tuned", "decode")
    assert f"tuned against default: decode faster, {render_ratio(ratio)}" in page.text
    assert "40.0 (40.0-40.0)" in page.text
    assert "60.0" in page.text
    assert "1.0 GiB" in page.text
    assert "900 MiB" in page.text


def test_forest_has_a_row_for_each_ratio(result: BenchResult, text: str) -> None:
    forest = svgs(text)[0]
    verdicts = [
        ratio.verdict for ratios in result.against.values() for ratio in ratios.values() if ratio.estimate is not None
    ]
    assert marks(forest, "mark faster") == verdicts.count("faster") > 0
    assert marks(forest, "mark slower") == verdicts.count("slower") > 0
    assert marks(forest, "mark same") == verdicts.count("no difference") > 0
    assert marks(forest, "floor") == len(verdicts)


def test_every_round_is_a_dot_and_what_is_far_out_is_named(result: BenchResult, text: str) -> None:
    drawn = next(svg for svg in svgs(text) if (svg.findtext("title") or "").startswith("decode"))
    assert marks(drawn, "dot", "far") == sum(sample.decode_tokens_per_s is not None for sample in result.runs)
    far = {arm: figures for arm in result.arms if (figures := outliers_of(result.runs, arm, "decode"))}
    assert marks(drawn, "far") == sum(map(len, far.values())) > 0
    place = next(iter(far.values()))[0][0]
    assert str(place) in [part.text for part in drawn.iter("text")]


def test_arms_of_the_curve_differ_in_shape(text: str) -> None:
    drawn = next(svg for svg in svgs(text) if "tokens a second" in (svg.findtext("title") or ""))
    points = [part for part in drawn.iter() if part.get("class") == "point"]
    # Two levels, and the legend.
    assert len(points) == 9
    assert {part.tag for part in points} == {"circle", "polygon"}
    assert len({len((part.get("points") or "").split()) for part in points}) == 3


def test_parts_of_memory_follow_each_other(text: str) -> None:
    drawn = next(svg for svg in svgs(text) if svg.findtext("title") == "Memory")
    boxes = [part for part in drawn.iter("rect") if part.get("class") == "part"][:2]
    weights, kv = [(float(part.get("x") or 0), float(part.get("width") or 0)) for part in boxes]
    assert kv[0] == pytest.approx(sum(weights), abs=0.2)
    assert weights[1] / kv[1] == pytest.approx(10, rel=0.02)


def test_one_arm_alone_has_no_ratios() -> None:
    world = World()
    alone = run_bench([world.arm("default")], load_workload("chat"), Budget(60.0), clock=world.clock)
    page = Page(render_html([alone], subject()))
    assert "Ratios" not in page.text
    assert "Every round" in page.text
    assert "The plan was not measured here" in page.text


def test_several_comparisons_and_models_share_a_page(result: BenchResult) -> None:
    world = World()
    names = ("a-model-with-a-rather-long-name-q4_k_m", "a-model-with-a-rather-long-name-q8_0")
    arms = [world.arm(name, crowds=(2, 4)) for name in names]
    other = replace(measured(*arms, world=world), depth_tokens=4096, incomplete="the server ended")
    page = Page(render_html([result, other], subject(*names)))
    assert page.count("h2") == 5
    assert len(page.ids) == len(set(page.ids))
    assert "chat, depth 4,096 tokens (incomplete: the server ended)" in page.text
    assert "The run broke off: the server ended" in page.text
    for drawn in svgs(render_html([other], subject(*names))):
        # Names this long are never cut to the same beginning.
        assert "a-model-with-a-rath\u2026" not in [part.text for part in drawn.iter("text")]


def test_a_result_without_a_figure_is_still_a_page(result: BenchResult) -> None:
    runs = tuple(
        replace(
            sample, ttft_s=None, prefill_tokens_per_s=None, decode_tokens_per_s=None, crowds=(), error="no token came"
        )
        for sample in result.runs[:1]
    )
    bare = replace(result, arms=("default",), runs=runs, starts=(), incomplete="the server ended")
    page = Page(render_html([bare], Subject({}, "openai", Facts(), "9.8.7")))
    assert "unknown" in page.text


@given(st.floats(1e-6, 1e9), st.floats(1e-6, 1e9), st.floats(0.0, 1.0))
@settings(max_examples=12, deadline=None)
def test_any_values_can_be_drawn(result: BenchResult, one: float, other: float, fairness: float) -> None:
    chosen = [sample for sample in result.runs if sample.round < 3]
    runs = tuple(
        replace(
            sample,
            decode_tokens_per_s=one if sample.arm == "tuned" else other,
            ttft_s=other if sample.round else one,
            crowds=(CrowdFigures(2, one, other, fairness, 1, 1.0), CrowdFigures(64, other, one, fairness, 1, 1.0)),
        )
        for sample in chosen
    )
    text = render_html([replace(result, runs=runs)], subject())
    assert svgs(text)
    for value in re.findall(r' (?:x|x1|x2|cx|y|y1|y2|cy)="([^"]*)"', text):
        assert -20 <= float(value) <= 2000


def test_the_same_result_gives_the_same_page(result: BenchResult, text: str) -> None:
    assert render_html([replace(result)], subject()) == text


MARKUP = st.text(
    st.one_of(st.sampled_from("<>&\"'/=!-; \t\n`\u2028\u202e\x00\ud800scriptonload"), st.characters()), max_size=60
)


@given(MARKUP, MARKUP, MARKUP)
@settings(max_examples=40, deadline=None)
def test_nothing_from_outside_becomes_markup(few: BenchResult, text: str, name: str, note: str, reason: str) -> None:
    arm = f"tuned{name}"
    runs = tuple(replace(sample, arm=arm if sample.arm == "tuned" else sample.arm, error=note) for sample in few.runs)
    odd = replace(
        few, arms=("default", "current", arm), tuned=arm, runs=runs, notes=(note,), incomplete=reason, workload=name
    )
    machine = FACTS.model_copy(update={"gpus": (GpuFacts(name=f"{note}{name}"),), "container": reason})
    odd_text = render_html([odd], subject(f"m{name}", reason=reason, facts=machine))
    odd_text.encode("utf-8")
    page = Page(odd_text)
    assert set(page.tags) <= set(Page(text).tags)
    plain = re.sub(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u202a-\u202e\u2066-\u2069\ufffe\uffff]", "\ufffd", note
    )
    assert plain in page.text
    assert svgs(odd_text)


def test_markup_in_a_name_is_shown_as_it_is(result: BenchResult) -> None:
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
    text = render_html([replace(result, notes=(evil,))], subject(evil, reason=evil))
    assert "<script" not in text and "<img" not in text
    assert Page(text).text.count(evil) >= 4


def test_the_page_is_light_dark_and_printable(text: str) -> None:
    style = text.partition("<style>")[2].partition("</style>")[0]
    assert "@media screen and (prefers-color-scheme: dark)" in style
    assert "@media print" in style
    assert "color-scheme: light dark" in style
    used = set(re.findall(r"var\(--([a-z0-9]+)\)", style))
    assert used == set(LIGHT) == set(DARK)


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_contrast_is_enough(colours: Mapping[str, str]) -> None:
    """WCAG 2.2, 1.4.3: 4.5:1 for text, on every ground that it stands on."""
    for name, value in colours.items():
        if name in ("page", "panel", "grid", "floor"):
            continue
        assert contrast(value, colours["page"]) >= 4.5, name
    for ground in ("panel", "floor"):
        assert contrast(colours["text"], colours[ground]) >= 4.5


def contrast(one: str, other: str) -> float:
    bright, dim = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def luminance(colour: str) -> float:
    """WCAG 2.2, definition of relative luminance."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_the_knobs_of_an_arm_from_a_file_are_on_the_page() -> None:
    world = World()
    mine = measured(world.arm("default"), world.arm("tuned"), world.arm("mine"), world=world, levels=())
    knobs: dict[str, Knobs] = {
        "default": {"threads": 8, "draft_model": None},
        "tuned": {"threads": 4},
        "mine": {"threads": 7, "draft_model": "/home/alice/draft.gguf"},
    }
    text = render_html([mine, mine], replace(subject(), arms=[knobs, knobs]))
    assert text.count("<caption>What the arms of chat ran with") == 1
    page = Page(text)
    assert re.search(r"draft_model\s*engine's\s*engine's\s*draft\.gguf", page.text)
    assert re.search(r"threads\s*8\s*4\s*7", page.text)
    assert "alice" not in page.text
    plain = {arm: knobs[arm] for arm in ("default", "tuned")}
    assert "ran with" not in render_html([mine], replace(subject(), arms=[plain]))
