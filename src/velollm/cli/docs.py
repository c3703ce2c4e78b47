"""`python -m velollm.cli.docs DIR [--check]`: the generated parts of the documentation.

A part lies between `<!-- generated: NAME -->` and `<!-- end -->`; everything around it is written by hand.
It comes from what the program itself says (help, rules, checks, knobs, profiles), so it cannot be out of date. The JSON
schema of shared results is a file of its own.
This module is no command of `velollm`: it has no attribute of that name.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from velollm.errors import EXIT_DONE, VeloError

_PART = re.compile(r"^<!-- generated: ([a-z][a-z -]*) -->\n(.*?)^<!-- end -->$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"^<!-- (?:generated: .*|end) -->$", re.MULTILINE)
# What a terminal of 100 columns shows: the formatter leaves two of them free.
_HELP_COLUMNS = 98
_KEPT = {
    "speed": "speed: kept only when measured faster",
    "enables": "what it enables: kept when wanted and speed is not proved lower",
}
_SCHEMA_FILE = "result-schema.json"
_SCOPE = {"server": "every model of a server", "model": "one model"}


def render_parts() -> dict[str, tuple[str, str]]:
    """Every generated part: its name, the page that must hold it (relative to the folder), and its text."""
    parts = {f"help {name}": (f"commands/{name}.md", text) for name, text in _helps()}
    parts["profiles"] = ("commands/optimize.md", _profiles())
    parts["rules"] = ("rules.md", _rules())
    parts["checks"] = ("checks.md", _checks())
    parts["knobs"] = ("knobs.md", _knobs())
    return parts


def fill_page(page: str, texts: Mapping[str, str]) -> str:
    """The page with its generated parts as ``texts`` (part name to text) has them.

    Raises:
        VeloError: a part has no end, or nothing generates it.
    """
    if len(_MARK.findall(page)) != 2 * len(_PART.findall(page)):
        raise VeloError("a generated part has no beginning or no end", "write `<!-- end -->` on a line after it")

    def fill(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in texts:
            raise VeloError(f"nothing generates the part '{name}'", f"parts: {', '.join(texts)}")
        return f"<!-- generated: {name} -->\n\n{texts[name]}\n\n<!-- end -->"

    return _PART.sub(fill, page)


def differing_pages(directory: Path) -> dict[Path, str]:
    """Pages under ``directory`` whose generated parts are out of date, and what they should be.

    Raises:
        VeloError: a page is missing, cannot be read, or lacks its part.
    """
    parts = render_parts()
    texts = {name: text for name, (_, text) in parts.items()}
    wanted: dict[Path, list[str]] = {path: [] for path in sorted(directory.rglob("*.md"))}
    for name, (page, _) in parts.items():
        wanted.setdefault(directory / page, []).append(name)
    found: dict[Path, str] = {}
    for path, names in wanted.items():
        page = _read_page(path)
        held = [match.group(1) for match in _PART.finditer(page)]
        if lacking := [name for name in names if name not in held]:
            raise VeloError(f"{path} lacks the part '{lacking[0]}'", f"add `<!-- generated: {lacking[0]} -->` to it")
        try:
            filled = fill_page(page, texts)
        except VeloError as error:
            raise VeloError(f"{path}: {error.message}", error.hint) from error
        if filled != page:
            found[path] = filled
    schema = directory / _SCHEMA_FILE
    text = render_schema()
    if not schema.exists() or _read_page(schema) != text:
        found[schema] = text
    return found


def render_schema() -> str:
    """The JSON schema of what `velollm export` writes."""
    from velollm.bench.shared import SharedFile

    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **SharedFile.model_json_schema()}
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def _read_page(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise VeloError(f"cannot read the page {path}: {error}", "every command, and each list, has a page") from error


def _helps() -> Iterator[tuple[str, str]]:
    """Each command with its `--help`, whatever the width of the terminal."""
    from typer.core import TyperGroup
    from typer.main import get_command

    from velollm.cli import make_app

    root = get_command(make_app())
    assert isinstance(root, TyperGroup)
    # Resilient: a context without arguments is wanted, not an error about them.
    outer = root.make_context("velollm", [], resilient_parsing=True, terminal_width=_HELP_COLUMNS)
    for name, command in sorted(root.commands.items()):
        context = command.make_context(name, [], parent=outer, resilient_parsing=True, terminal_width=_HELP_COLUMNS)
        yield name, f"```text\n{command.get_help(context).rstrip()}\n```"


def _profiles() -> str:
    from velollm.plan import list_profiles, load_profile
    from velollm.report.terminal import render_value

    lines = [
        "| profile | for | context | slots | keeps idle models | figure that decides | accepted price |",
        "|---|---|---|---|---|---|---|",
    ]
    for profile in map(load_profile, list_profiles()):
        cells = (
            f"`{profile.name}`",
            profile.summary,
            f"{profile.context_tokens:,}",
            profile.slots,
            render_value("keep_alive_s", profile.keep_alive_s),
            f"`{profile.metric}` of the workload `{profile.workload}`",
            f"{profile.accepted_price:.0%}",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _rules() -> str:
    from velollm.plan import load_rules

    rules = load_rules()
    owners = {knob: rule.id for rule in rules for knob in rule.sets}
    blocks = []
    for rule in rules:
        before = ", ".join(f"[{name}](#{name})" for name in sorted({owners[knob] for knob in rule.needs}))
        knobs = ", ".join(f"[`{knob}`](knobs.md#{knob})" for knob in rule.sets)
        line = f"{rule.title}. Sets {knobs}{f'; runs after {before}' if before else ''}."
        blocks.append(f"## {rule.id}\n\n{line}\n\n{inspect.cleandoc(rule.doc)}")
    return "\n\n".join(blocks)


def _checks() -> str:
    from velollm.doctor.diagnose import load_checks

    return "\n\n".join(
        f"## {check.name}\n\n{check.title}. Worst: {check.severity}. "
        f"Mended by {'a command' if check.fixable else 'a step of your own'}.\n\n{inspect.cleandoc(check.doc)}"
        for check in load_checks()
    )


def _knobs() -> str:
    import textwrap

    from velollm.knobs import KNOBS
    from velollm.plan import load_rules

    owners = {name: rule.id for rule in load_rules() for name in rule.sets}
    blocks = []
    for knob in KNOBS.values():
        facts = [
            f"- unit: {knob.unit}",
            f"- there for {_KEPT[knob.purpose]}",
            f"- holds for {_SCOPE[knob.scope]}",
            f"- can change answers: {'yes, so only `--set` turns it' if knob.changes_answer else 'no'}",
        ]
        if knob.choices:
            facts.append(f"- values: {', '.join(f'`{choice}`' for choice in knob.choices)}")
        if knob.name in owners:
            facts.append(f"- set by the rule [{owners[knob.name]}](rules.md#{owners[knob.name]})")
        text = f"{knob.summary[:1].upper()}{knob.summary[1:]}. {knob.explain}"
        # Whole words only, and never at a hyphen: `a-b` would come out as `a- b`.
        lines = textwrap.wrap(text, 120, break_long_words=False, break_on_hyphens=False)
        blocks.append("\n".join([f"## {knob.name}", "", *lines, "", *facts]))
    return "\n\n".join(blocks)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the generated parts, or with ``--check`` only say which pages are out of date; the exit code."""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m velollm.cli.docs", description="Write the generated parts.")
    parser.add_argument("directory", metavar="DIR", type=Path, help="folder of the documentation")
    parser.add_argument("--check", action="store_true", help="write nothing; leave with 1 where a page is out of date")
    options = parser.parse_args(argv)
    try:
        _run(options.directory, check=options.check)
    except VeloError as error:
        print(f"Error: {error.message}", file=sys.stderr)
        print(f"Hint: {error.hint}", file=sys.stderr)
        return error.exit_code
    return EXIT_DONE


def _run(directory: Path, *, check: bool) -> None:
    pages = differing_pages(directory)
    if check and pages:
        raise VeloError(f"out of date: {', '.join(map(str, pages))}", "write them again with `make docs`")
    for path, text in pages.items():
        path.write_text(text, encoding="utf-8", newline="\n")
        print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
