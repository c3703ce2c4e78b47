"""`velollm import`: somebody else's results into the history."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from velollm.cli.shared import JsonOption, console, print_json
from velollm.errors import UsageError


def command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `velollm export` wrote, here or elsewhere.")],
    json_: JsonOption = False,
) -> None:
    """Take results of another machine into the history, to look at and to compare with.

    They are marked as another machine's: no estimate, recommendation or trend of this one is made of them.

    Example: velollm import result.json
    """
    from velollm.bench.history import append_records
    from velollm.bench.share import MOST_BYTES, parse_shared, record_of
    from velollm.config import user_paths

    try:
        with file.open("rb") as stream:
            data = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror or error}", "name a file of `velollm export`") from error
    records = [record_of(result) for result in parse_shared(data, str(file)).results]
    added, notes = append_records(user_paths().data, records)
    for note in notes:
        console(stderr=True).print(note, style="dim", soft_wrap=True)
    already = [record.id for record in records if record.id not in added]
    if json_:
        print_json({"imported": list(added), "already": already})
        return
    out = console()
    for record in records:
        from velollm.report.bench_history import title_of_record

        state = "imported" if record.id in added else "here already"
        out.print(f"{state}: {title_of_record(record)}", soft_wrap=True)
