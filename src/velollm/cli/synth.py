"""`velollm synth`: a model with random weights and a real shape, made on the spot."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from velollm.cli.shared import JsonOption, console, meter, print_json

if TYPE_CHECKING:
    from velollm.facts import ModelFacts


def command(
    family: Annotated[
        str | None,
        typer.Argument(metavar="[FAMILY[:SIZE]]", help="A known model, such as llama3.2:1b or qwen3:8b."),
    ] = None,
    like: Annotated[
        str | None,
        typer.Option("--like", metavar="MODEL", help="Make a twin of this GGUF file or Ollama model instead."),
    ] = None,
    quant: Annotated[
        str | None,
        typer.Option("--quant", metavar="NAME", help="Number formats, such as q4_K_M; else the model's usual ones."),
    ] = None,
    layers: Annotated[
        int | None, typer.Option("--layers", metavar="N", help="Only the first N layers of the family's shape.")
    ] = None,
    predictability: Annotated[
        float | None,
        typer.Option("--predictability", metavar="P", help="Each token has one that follows it with this probability."),
    ] = None,
    period: Annotated[
        int | None, typer.Option("--period", metavar="N", help="Predictable text that repeats every N tokens.")
    ] = None,
    drafts_for: Annotated[
        Path | None,
        typer.Option("--drafts-for", metavar="FILE", help="Make a small draft for this predictable made model."),
    ] = None,
    agreement: Annotated[
        float | None,
        typer.Option(
            "--agreement", metavar="A", help="Share of tokens after which the draft (0.8) or MTP layers (1) are right."
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", min=0, max=2**32 - 1, help="Another seed gives other weights.")
    ] = 1,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where to write it; else a name of its own.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    json_: JsonOption = False,
) -> None:
    """Make a model with random weights and a real shape: its speed is real, its text means nothing.

    Example: velollm synth qwen3:8b --quant q4_K_M -o qwen3-8b-made.gguf
    """
    import os

    from velollm.autopilot import Wish, make_model

    wish = Wish(family, like, quant, layers, predictability, period, drafts_for, agreement, seed)
    began_s = time.monotonic()
    with meter() as cockpit:
        path, facts = make_model(wish, output, cockpit, replace_file=force, ollama_host=os.environ.get("OLLAMA_HOST"))
    elapsed_s = time.monotonic() - began_s
    if json_:
        made = facts.made.model_dump() if facts.made else None
        kept = ("architecture", "file_bytes", "file_type", "parameters", "layers", "vocab")
        fields = {name: getattr(facts, name) for name in kept}
        print_json({"path": str(path), **fields, "made": made, "seed": seed, "elapsed_s": round(elapsed_s, 3)})
        return
    _print(path, facts, elapsed_s)


def _print(path: Path, facts: ModelFacts, elapsed_s: float) -> None:
    from velollm.units import render_bytes

    out = console()
    what = f"{facts.architecture}, {facts.layers} layers, {(facts.parameters or 0) / 1e9:.2g} billion weights"
    size = f"{facts.file_type}, {render_bytes(facts.file_bytes)}"
    out.print(f"Made {path} ({what}, {size}) in {elapsed_s:.1f} s.", soft_wrap=True)
    made = facts.made
    if made is None or made.predictability is None:
        out.print("Its speed is real; its text means nothing.")
        return
    text = f"each token has one that follows it with probability {made.predictability:.2g} at temperature 1"
    text += f", and text repeats every {made.period} tokens" if made.period else ""
    text += f"; it agrees with its model after {made.agreement:.0%} of the tokens" if made.agreement is not None else ""
    heads = made.heads_agreement
    text += f"; its MTP layers agree with it after {heads:.0%} of the tokens" if heads is not None else ""
    out.print(f"Its speed is real; its text is chosen: {text}.", soft_wrap=True)
    out.print("How much of a draft gets accepted is therefore an assumption of yours, not a finding.", soft_wrap=True)
