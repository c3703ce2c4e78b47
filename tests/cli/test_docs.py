"""The documentation is what the program says, and its links lead somewhere."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from velollm.cli import run_app
from velollm.cli.docs import fill_page, main, render_parts
from velollm.discover import load_modules
from velollm.doctor.diagnose import load_checks
from velollm.errors import VeloError
from velollm.knobs import KNOBS
from velollm.plan import list_profiles, load_rules

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
COMMANDS = sorted(
    module.__name__.rpartition(".")[2].rstrip("_")
    for module in load_modules("velollm.cli")
    if hasattr(module, "command")
)
PAGES = [*sorted(DOCS.rglob("*.md")), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The documentation, to be doctored."""
    return Path(shutil.copytree(DOCS, tmp_path / "docs"))


def test_generated_parts_are_current(capsys: pytest.CaptureFixture[str]) -> None:
    code = main([str(DOCS), "--check"])
    assert code == 0, capsys.readouterr().err


def test_every_command_has_a_page_and_every_page_a_command() -> None:
    assert [path.stem for path in sorted((DOCS / "commands").glob("*.md"))] == COMMANDS


def test_the_module_is_no_command() -> None:
    assert "docs" not in COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("columns", ["40", "100"])
def test_the_help_is_that_of_a_terminal_of_100_columns(
    name: str, columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert run_app([name, "--help"]) == 0
    usage, *shown = capsys.readouterr().out.rstrip().splitlines()
    monkeypatch.setenv("COLUMNS", columns)
    fence, first, *written, end = render_parts()[f"help {name}"][1].splitlines()
    assert (fence, end) == ("```text", "```")
    assert first.startswith(f"Usage: velollm {name} ")
    assert first.split(f" {name} ", 1)[1] == usage.split(f" {name} ", 1)[1]
    assert written == shown


def test_parts_speak_of_all_there_is() -> None:
    texts = {name: text for name, (_, text) in render_parts().items()}
    assert re.findall(r"^## (\S+)$", texts["knobs"], re.MULTILINE) == list(KNOBS)
    assert re.findall(r"^## (\S+)$", texts["rules"], re.MULTILINE) == [rule.id for rule in load_rules()]
    assert re.findall(r"^## (\S+)$", texts["checks"], re.MULTILINE) == [check.name for check in load_checks()]
    assert re.findall(r"^\| `(\S+)` \|", texts["profiles"], re.MULTILINE) == list(list_profiles())


def add_line(part: str) -> str:
    return part + "Not what the program says.\n"


def drop_line(part: str) -> str:
    return part[: part.rstrip().rindex("\n") + 1]


def change_letter(part: str) -> str:
    place = len(part) // 2
    return part[:place] + ("b" if part[place] == "a" else "a") + part[place + 1 :]


@pytest.mark.parametrize("page", ["commands/undo.md", "commands/optimize.md", "rules.md", "checks.md", "knobs.md"])
@pytest.mark.parametrize("doctor", [add_line, drop_line, change_letter])
def test_a_doctored_page_is_found_and_mended(
    copy: Path, page: str, doctor: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy / page
    text = path.read_text(encoding="utf-8")
    start = text.index(" -->\n", text.rindex("<!-- generated")) + len(" -->\n")
    end = text.rindex("<!-- end -->")
    doctored = text[:start] + doctor(text[start:end]) + text[end:]
    path.write_text(doctored, encoding="utf-8")

    assert main([str(copy), "--check"]) == 1
    error = capsys.readouterr().err
    assert str(path) in error
    assert error.count(".md") == 1
    assert path.read_text(encoding="utf-8") == doctored

    assert main([str(copy)]) == 0
    assert path.read_bytes() == (DOCS / page).read_bytes()
    assert main([str(copy), "--check"]) == 0


@pytest.mark.parametrize("text", [None, "{}\n"])
def test_the_schema_of_shared_results_is_current(
    copy: Path, text: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy / "result-schema.json"
    path.unlink()
    if text is not None:
        path.write_text(text, encoding="utf-8")
    assert main([str(copy), "--check"]) == 1
    assert str(path) in capsys.readouterr().err
    assert main([str(copy)]) == 0
    assert path.read_bytes() == (DOCS / "result-schema.json").read_bytes()


def test_what_is_written_by_hand_stays(copy: Path) -> None:
    path = copy / "rules.md"
    path.write_text("By hand.\n" + path.read_text(encoding="utf-8") + "The end.\n", encoding="utf-8")
    before = path.read_bytes()
    assert main([str(copy)]) == 0
    assert path.read_bytes() == before


def test_a_missing_page_is_named(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "commands" / "run.md").unlink()
    assert main([str(copy), "--check"]) == 1
    assert str(copy / "commands" / "run.md") in capsys.readouterr().err


def test_a_page_without_its_part_is_named(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "commands" / "run.md").write_text("# velollm run\n", encoding="utf-8")
    assert main([str(copy), "--check"]) == 1
    error = capsys.readouterr().err
    assert str(copy / "commands" / "run.md") in error
    assert "'help run'" in error


def test_a_page_of_a_command_that_is_gone_is_named(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "gone.md").write_text("<!-- generated: help gone -->\nold\n<!-- end -->\n", encoding="utf-8")
    assert main([str(copy), "--check"]) == 1
    error = capsys.readouterr().err
    assert str(copy / "gone.md") in error
    assert "help gone" in error


@pytest.mark.parametrize(
    "page",
    [
        "<!-- generated: one -->\nno end\n",
        "no beginning\n<!-- end -->\n",
        "<!-- generated: one -->\n<!-- generated: one -->\n<!-- end -->\n",
    ],
)
def test_a_part_without_beginning_or_end_is_refused(page: str) -> None:
    with pytest.raises(VeloError, match="no beginning or no end"):
        fill_page(page, {"one": "1"})


def test_parts_are_filled_once_and_for_all() -> None:
    page = "a\n<!-- generated: one -->\n<!-- end -->\nb\n<!-- generated: two -->\nold\n<!-- end -->\n"
    filled = fill_page(page, {"one": r"\1", "two": "2"})
    assert filled == (
        "a\n<!-- generated: one -->\n\n\\1\n\n<!-- end -->\nb\n<!-- generated: two -->\n\n2\n\n<!-- end -->\n"
    )
    assert fill_page(filled, {"one": r"\1", "two": "2"}) == filled


def test_a_wrong_command_line_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leave:
        main([])
    assert leave.value.code == 2
    assert "DIR" in capsys.readouterr().err


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "`code`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def anchors(path: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def broken_links(path: Path) -> list[str]:
    """Links of a page to files or headings of this repository that are not there."""
    broken = []
    for link in LINK.findall(without_code(path.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        goal = (path.parent / name).resolve() if name else path
        is_there = goal.exists() and goal.is_relative_to(ROOT)
        if not is_there or (anchor and anchor not in anchors(goal)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    assert broken_links(path) == []


def test_a_broken_link_would_be_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tests.cli.test_docs.ROOT", tmp_path)
    good, bad = tmp_path / "good.md", tmp_path / "bad.md"
    good.write_text("# A `title`, of sorts\n[me](#a-title-of-sorts) [all](bad.md) [out](https://example.org)\n")
    bad.write_text("[x](none.md) [y](good.md#none) ![z](none.svg) [w](../outside) `[v](code.md)`\n")
    assert broken_links(good) == []
    assert broken_links(bad) == ["none.md", "good.md#none", "none.svg", "../outside"]


def test_the_picture_needs_nothing_from_elsewhere() -> None:
    text = (DOCS / "flight.svg").read_text(encoding="utf-8")
    links = set(re.findall(r"[a-z]+://[^\"'\s)]+", text)) - {"http://www.w3.org/2000/svg"}
    assert not links
    assert not re.search(r"<(?:script|image|foreignObject|use)\b|@import|@font-face|href=", text)
