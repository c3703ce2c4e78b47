"""`velollm estimate`: the memory that a model takes, part by part, on each device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from velollm.cli.shared import BackendOption, JsonOption, print_json
from velollm.errors import UsageError

if TYPE_CHECKING:
    from velollm.estimate import Answer
    from velollm.knobs import KnobValue

_KV = "f16|q8_0|q4_0|…"
_BASES: dict[str, Literal["auto", "arithmetic", "engine"]] = {
    "auto": "auto",
    "arithmetic": "arithmetic",
    "engine": "engine",
}


def command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Path of a GGUF file, or the name of an Ollama or catalog model.")
    ],
    context: Annotated[
        int | None, typer.Option("--context", metavar="N", min=1, help="Tokens that each slot can hold.")
    ] = None,
    slots: Annotated[int | None, typer.Option("--slots", metavar="K", min=1, help="Requests answered at once.")] = None,
    kv: Annotated[str | None, typer.Option("--kv", metavar=_KV, help="Number format of the KV cache.")] = None,
    kv_k: Annotated[str | None, typer.Option("--kv-k", metavar=_KV, help="The same for the keys alone.")] = None,
    kv_v: Annotated[str | None, typer.Option("--kv-v", metavar=_KV, help="The same for the values alone.")] = None,
    batch: Annotated[int | None, typer.Option("--batch", metavar="B", min=1, help="Tokens of a logical step.")] = None,
    ubatch: Annotated[
        int | None, typer.Option("--ubatch", metavar="U", min=1, help="Tokens that are computed in one go.")
    ] = None,
    gpu_layers: Annotated[
        int | None, typer.Option("--gpu-layers", metavar="N", min=0, help="Layers on GPUs; all where none is given.")
    ] = None,
    cpu_moe_layers: Annotated[
        int | None,
        typer.Option("--cpu-moe-layers", metavar="N", min=0, help="Layers whose experts stay in main memory."),
    ] = None,
    cpu_ffn_layers: Annotated[
        int | None,
        typer.Option(
            "--cpu-ffn-layers", metavar="N", min=0, help="Layers whose dense feed-forward part stays in main memory."
        ),
    ] = None,
    load_mode: Annotated[
        str | None, typer.Option("--load-mode", metavar="auto|none|mmap|mlock", help="How weights get into memory.")
    ] = None,
    kv_unified: Annotated[bool, typer.Option("--kv-unified", help="One KV cache that all slots share.")] = False,
    draft: Annotated[
        str | None, typer.Option("--draft", metavar="MODEL", help="A model beside it that proposes tokens.")
    ] = None,
    projector: Annotated[
        Path | None, typer.Option("--projector", metavar="FILE", help="What turns pictures into embeddings for it.")
    ] = None,
    backend: BackendOption = "auto",
    basis: Annotated[
        str,
        typer.Option(
            "--basis",
            metavar="auto|arithmetic|engine",
            help="Work it out, corrected by the engine's last load of it; work it out; or load it and see.",
        ),
    ] = "auto",
    hardware: Annotated[
        Path | None, typer.Option("--hardware", metavar="FILE", help="Another machine: a capture, or a description.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Estimate the memory that a model takes on each device, from its file's header alone.

    Options that are not given are as the engine would choose: llama.cpp's own for a GGUF file, Ollama's for an Ollama
    model. The server's prompt cache, up to 8 GiB, stands apart.

    Example: velollm estimate llama3.1:8b --context 32768 --slots 4 --kv q8_0
    """
    from velollm.config import user_paths
    from velollm.estimate import Question, estimate

    wanted = _BASES.get(basis)
    if wanted is None:
        raise UsageError(f"--basis is auto, arithmetic or engine, not '{basis}'", "for example --basis engine")
    texts = {"kv_type_k": kv_k or kv, "kv_type_v": kv_v or kv, "load_mode": load_mode}
    numbers = {
        "context_tokens": context,
        "slots": slots,
        "batch": batch,
        "ubatch": ubatch,
        "gpu_layers": gpu_layers,
        "cpu_moe_layers": cpu_moe_layers,
        "cpu_ffn_layers": cpu_ffn_layers,
    }
    knobs: dict[str, KnobValue] = {name: value for name, value in numbers.items() if value is not None}
    knobs.update(_parsed(texts))
    if kv_unified:
        knobs["kv_unified"] = "on"
    answer = estimate(Question(model, knobs, draft, backend, hardware, wanted, projector), user_paths().data)
    if json_:
        print_json(_fields(answer))
        return
    from velollm.cli.shared import console
    from velollm.report.estimate import render_estimate

    console().print(render_estimate(answer))


def _parsed(texts: dict[str, str | None]) -> dict[str, KnobValue]:
    """Values of options that are words. Raises `UsageError` for a wrong one."""
    from velollm.knobs import parse_knob_value

    found: dict[str, KnobValue] = {}
    for name, text in texts.items():
        if text is None:
            continue
        try:
            found[name] = parse_knob_value(name, text)
        except ValueError as error:
            raise UsageError(str(error), "`velollm estimate --help` shows the options") from error
    return found


def _fields(answer: Answer) -> dict[str, Any]:
    from velollm.models.memory import device_fields

    return {
        "devices": [device_fields(device) for device in answer.estimate.devices],
        "total_bytes": answer.estimate.total_bytes,
        "prompt_cache_bytes": answer.estimate.prompt_cache_bytes,
        "source": answer.source,
    }
