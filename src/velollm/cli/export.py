"""`velollm export`: results as a file to show to others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from velollm.cli.files import check_writable, write_whole
from velollm.cli.shared import console, own_identity
from velollm.errors import UsageError

if TYPE_CHECKING:
    from velollm.bench.share import Cleaner


def command(
    results: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RESULT]...", help="Ids of results, as `velollm bench --list` shows them."),
    ] = None,
    last: Annotated[bool, typer.Option("--last", help="The newest result of this machine.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write it there rather than to the terminal.")
    ] = None,
    format_: Annotated[
        Literal["json", "benchstat"],
        typer.Option("--format", help="json: to be imported elsewhere; benchstat: text for Go's benchstat."),
    ] = "json",
) -> None:
    """Write measured results as a file to show to others, with nothing personal in it.

    It holds raw samples, knobs, and what the machine and the model are. It holds no names of users, machines, files or
    models of your own, no addresses, variables, prompts or notes.

    Example: velollm export --last -o result.json
    """
    from velollm import __version__
    from velollm.bench.history import LAST, read_history
    from velollm.bench.share import record_of, render_shared, share_file
    from velollm.config import user_paths

    names = [*(results or []), *([LAST] if last else [])]
    if not names:
        raise UsageError("name a result", "`velollm bench --list` lists them; --last is the newest")
    check_writable(output)
    history = read_history(user_paths().data)
    records = list({record.id: record for record in map(history.find, names)}.values())
    file = share_file(records, __version__, _public_name, _cleaner())
    if format_ == "json":
        text = render_shared(file)
    else:
        from velollm.report.benchstat import render_benchstat

        text = render_benchstat([record_of(result) for result in file.results])
    if output is None:
        print(text, end="")
        return
    write_whole(output, text)
    console(stderr=True).print(f"Wrote {output}", soft_wrap=True)


def _public_name(model: str) -> str | None:
    """The catalog's name of a model, where it has it; models with names of their own may be anybody's."""
    from velollm.models.catalog import find_catalog_choice

    choice = find_catalog_choice(model)
    return None if choice is None else choice.ollama_name or choice.name


def _cleaner() -> Cleaner:
    from velollm.bench.share import Cleaner

    own = own_identity()
    return Cleaner({*own.users, *own.hosts, *(host.partition(".")[0] for host in own.hosts)})
