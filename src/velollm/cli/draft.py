"""`velollm draft`: draft models for speculative decoding: what is known, what fits, and how to get it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from velollm.cli.shared import JsonOption, ask, console, is_interactive, meter, print_json
from velollm.errors import EXIT_ADVISED, EXIT_DONE, UsageError

if TYPE_CHECKING:
    from velollm.draft.get import Wanted


def command(
    action: Annotated[str, typer.Argument(metavar="list|check|get", help="What to do.")],
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model that is to become faster.")],
    draft: Annotated[
        str | None,
        typer.Argument(
            metavar="[DRAFT]", help="An Ollama name (here or at its registry) or a GGUF file; `get` can choose one."
        ),
    ] = None,
    at_hand: Annotated[
        list[Path] | None,
        typer.Option("--file", metavar="FILE", help="list: a GGUF file that could draft; may be given several times."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="get: download without asking.")] = False,
    json_: JsonOption = False,
) -> int:
    """Draft models for speculative decoding: what is known for a model, whether one fits, and how to get it.

    `check` proves the vocabularies from both headers, of a draft that is not here by reading the head of its file at
    the registry; it leaves with 3 where the draft does not fit. `get` downloads through Ollama, after a yes.

    Example: velollm draft list llama3.1:8b
    """
    if action == "list":
        return _list(model, at_hand or [], json_=json_)
    if action == "check":
        if draft is None:
            raise UsageError("check needs a draft", "for example: velollm draft check llama3.1:8b llama3.2:1b")
        return _check(model, draft, json_=json_)
    if action == "get":
        return _get(model, draft, yes=yes, json_=json_)
    raise UsageError(f"there is no '{action}' of drafts", "it is one of list, check, get")


def _list(model: str, files: list[Path], *, json_: bool) -> int:
    from velollm.backends.ollama import OllamaBackend
    from velollm.config import user_paths
    from velollm.draft.known import overview
    from velollm.report.draft import overview_fields, render_overview

    found = overview(model, OllamaBackend(), user_paths(), files)
    if json_:
        print_json(overview_fields(found))
    else:
        console().print(render_overview(found))
    return EXIT_DONE


def _check(model: str, draft: str, *, json_: bool) -> int:
    from contextlib import closing

    from velollm.backends.ollama import OllamaBackend
    from velollm.backends.ollama_registry import Registry
    from velollm.draft.get import prove
    from velollm.draft.sources import find_source
    from velollm.report.draft import proof_fields, render_proof

    backend = OllamaBackend()
    with closing(Registry()) as registry:
        main = find_source(model, backend, registry)
        proof = prove(main, draft, backend, registry)
    if json_:
        print_json(proof_fields(main, draft, proof))
    else:
        console().print(render_proof(main.name, draft, proof))
    return EXIT_DONE if proof.fits else EXIT_ADVISED


def _get(model: str, draft: str | None, *, yes: bool, json_: bool) -> int:
    from contextlib import closing

    from velollm.backends.ollama import OllamaBackend
    from velollm.backends.ollama_registry import Registry
    from velollm.draft.get import fetch, want
    from velollm.report.draft import proof_fields, render_proof, render_wanted

    backend = OllamaBackend()
    with closing(Registry()) as registry:
        wanted = want(model, draft, backend, registry)
    if not json_:
        console().print(render_wanted(wanted), soft_wrap=True)
    done, proof = False, wanted.proof
    if wanted.remote is not None and _agreed(wanted, yes=yes, quiet=json_):
        with meter() as bar:
            if wanted.note:
                bar.note(f"Note: {wanted.note}.")
            proof = fetch(wanted, backend, lambda text, share: bar(share or 0.0, text))
        done = True
        if not json_:
            console().print(render_proof(wanted.main.name, wanted.name, proof))
    if json_:
        installed = wanted.remote is None
        print_json({**proof_fields(wanted.main, wanted.name, proof), "done": done, "installed": installed or done})
    return EXIT_DONE


def _agreed(wanted: Wanted, *, yes: bool, quiet: bool) -> bool:
    if yes:
        return True
    return not quiet and is_interactive() and ask(f"Get {wanted.name} now?")
