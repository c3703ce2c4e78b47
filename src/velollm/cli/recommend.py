"""`velollm recommend`: which model and number format suit this machine, and the command that gets them."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from velollm.cli.shared import (
    JsonOption,
    ProfileOption,
    ask,
    console,
    is_interactive,
    meter,
    print_json,
)
from velollm.errors import UsageError, VeloError

if TYPE_CHECKING:
    from velollm.recommend.finder import Answer, Finder
    from velollm.recommend.get import Way


def command(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="A model of the catalog, or an installed one with 16-bit weights: which format of it. "
            "Without one: which model.",
        ),
    ] = None,
    profile: ProfileOption = "chat",
    hardware: Annotated[
        Path | None,
        typer.Option("--hardware", metavar="FILE", help="A described or captured machine in place of this one."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Get the recommended model without asking.")] = False,
    json_: JsonOption = False,
) -> None:
    """Say which model and format suit this machine, how fast they would be, and get them after a yes.

    Example: velollm recommend --profile code
    """
    from velollm.config import user_paths
    from velollm.plan import load_profile
    from velollm.recommend.finder import Finder

    if yes and hardware is not None:
        raise UsageError("--yes gets a model for this machine, not for a described one", "leave out one of the two")
    err = console(stderr=True)

    def note(text: str) -> None:
        err.print(text, style="dim", soft_wrap=True)

    with closing(Finder(user_paths(), load_profile(profile), hardware, note=note)) as finder:
        answer = finder.find(model)
        if not json_:
            _print(answer)
        got = _get(finder, answer, yes=yes, quiet=json_)
    if json_:
        from velollm.report.recommend import recommendation_fields

        print_json({**recommendation_fields(answer), "done": got is not None, "got": got})


def _print(answer: Answer) -> None:
    from velollm.report.recommend import render_recommendation, render_way

    out = console()
    out.print(render_recommendation(answer.recommendation))
    if answer.recommendation.best is not None:
        out.print(f"\n{render_way(answer.way)}", soft_wrap=True)


def _get(finder: Finder, answer: Answer, *, yes: bool, quiet: bool) -> str | None:
    """Get the model where that was said, else the next best that the library has; the name of what was got."""
    from velollm.report.recommend import render_way

    if answer.way is None or answer.way.kind == "installed" or finder.hardware is not None:
        return None
    if not yes and (quiet or not is_interactive()):
        return None
    out = console(stderr=quiet)
    for number, way in enumerate((answer.way, *answer.next_ways)):
        if number:
            out.print(f"Next best, {way.name}. {render_way(way)}", soft_wrap=True, markup=False)
        if way.kind == "installed" or (not yes and not ask(f"Get {way.name} now?")):
            return None
        if finder.is_gone(way):
            out.print(f"The Ollama library has no {way.name}.", soft_wrap=True, markup=False)
            continue
        _take(finder, answer, way)
        if not quiet:
            out.print(f"{way.name} is there: ollama run {way.name}", soft_wrap=True, markup=False)
        return way.name
    raise VeloError("the Ollama library has none of the recommended models", "see ollama.com for what it has")


def _take(finder: Finder, answer: Answer, way: Way) -> None:
    from velollm.recommend.get import check_space, take

    note = check_space(way, answer.models_dir)
    finder.require_server()
    with meter() as bar:
        if note:
            bar.note(f"Note: {note}.")
        take(way, finder.backend.api, lambda text, done: bar(done or 0.0, text))
