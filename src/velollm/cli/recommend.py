"""`velollm recommend`: which model and number format suit this machine, and the command that gets them."""

from __future__ import annotations

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
from velollm.errors import UsageError

if TYPE_CHECKING:
    from velollm.recommend.finder import Answer, Finder


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
    finder = Finder(
        user_paths(), load_profile(profile), hardware, note=lambda text: err.print(text, style="dim", soft_wrap=True)
    )
    answer = finder.find(model)
    if not json_:
        _print(answer)
    done = _get(finder, answer, yes=yes, quiet=json_)
    if json_:
        from velollm.report.recommend import recommendation_fields

        print_json({**recommendation_fields(answer), "done": done})


def _print(answer: Answer) -> None:
    from velollm.report.recommend import render_recommendation, render_way

    out = console()
    out.print(render_recommendation(answer.recommendation))
    if answer.recommendation.best is not None:
        out.print(f"\n{render_way(answer.way)}", soft_wrap=True)


def _get(finder: Finder, answer: Answer, *, yes: bool, quiet: bool) -> bool:
    """Get the model where that was said; was it got?"""
    from velollm.recommend.get import check_space, take

    way = answer.way
    if way is None or way.kind == "installed" or finder.hardware is not None:
        return False
    if not yes and (quiet or not is_interactive()):
        return False
    note = check_space(way, answer.models_dir)
    if not yes and not ask(f"Get {way.name} now?"):
        return False
    finder.require_server()
    with meter() as bar:
        if note:
            bar.note(f"Note: {note}.")
        take(way, finder.backend.api, lambda text, done: bar(done or 0.0, text))
    if not quiet:
        console().print(f"{way.name} is there: ollama run {way.name}", soft_wrap=True)
    return True
