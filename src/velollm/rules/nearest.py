"""What would fit, where what is asked for does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from velollm.facts import ModelFacts
from velollm.knobs import QUANTIZED_KV_TYPES
from velollm.models.catalog import CatalogChoice, catalog_facts, find_alike
from velollm.models.formats import find_format
from velollm.rules.base import Nearest, word
from velollm.rules.kv_format import KV_TYPE_KNOBS, kv_refusal
from velollm.rules.placement import Placement
from velollm.rules.room import weight_bytes
from velollm.rules.solve import LEAST_BATCH, LEAST_CONTEXT, Fit, Solver, Want
from velollm.units import render_bytes

_COUNT = 3
# Bits per weight of whole files of Llama 3.1 8B: llama.cpp b10488, tools/quantize/README.md:145-174.
_BITS = {
    "f16": 16.0005,
    "q8_0": 8.5008,
    "q6_K": 6.5633,
    "q5_K_M": 5.7036,
    "q4_K_M": 4.8944,
    "q4_K_S": 4.6672,
    "q3_K_M": 3.9960,
    "q2_K": 3.1593,
}
_SMALLER_KV = "q8_0"


def find_nearest(solver: Solver, want: Want, good: Callable[[Placement], bool]) -> tuple[Nearest, ...]:
    """Up to three things near to the wish for which ``good`` holds: context, KV format, quantization.

    A smaller context, the KV cache in q8_0 and the largest smaller quantization; further quantizations fill the list.
    """
    found = [item for item in (_smaller_context(solver, want, good), _smaller_cache(solver, want, good)) if item]
    return (*found, *_smaller_weights(solver, want, good, _COUNT - len(found)))


def _smaller_context(solver: Solver, want: Want, good: Callable[[Placement], bool]) -> Nearest | None:
    fit = solver.largest_context(min(LEAST_CONTEXT, want.context), want.context, want.slots, LEAST_BATCH, good)
    slots = want.slots
    if fit is None and slots > 1:
        slots = 1
        fit = solver.largest_context(min(LEAST_CONTEXT, want.context), want.context, 1, LEAST_BATCH, good)
    if fit is None or (fit.context, slots) == (want.context, want.slots):
        return None
    each = f" for each of {slots} slots" if slots > 1 else " in one slot" if want.slots > 1 else ""
    return Nearest(f"{fit.context} tokens of context{each}", {"context_tokens": fit.context, "slots": slots})


def _smaller_cache(solver: Solver, want: Want, good: Callable[[Placement], bool]) -> Nearest | None:
    """The KV cache in q8_0, where the engine can load that and it is smaller than what is set."""
    kinds = {name: word(solver.knobs, name, "f16") for name in KV_TYPE_KNOBS}
    if any(kind in QUANTIZED_KV_TYPES for kind in kinds.values()):
        return None
    asked = dict.fromkeys(KV_TYPE_KNOBS, _SMALLER_KV)
    if kv_refusal(solver.model, asked, word(solver.knobs, "flash_attention", "auto")) is not None:
        return None
    fit = _some_fit(replace(solver, knobs={**solver.knobs, **asked}, weight_factor=1.0, _costs={}), want, good)
    if fit is None:
        return None
    return Nearest(
        f"the KV cache in {_SMALLER_KV} with {fit.context} tokens, which can change answers",
        {**asked, "context_tokens": fit.context, "slots": fit.slots},
        changes_answer=True,
    )


def _smaller_weights(solver: Solver, want: Want, good: Callable[[Placement], bool], count: int) -> tuple[Nearest, ...]:
    """Files of the same model with fewer bits a weight, the largest first."""
    total = weight_bytes(solver.model)
    found: list[Nearest] = []
    if total is None:
        return ()
    for name, tensors, file_bytes in _smaller_files(solver.model, total):
        # A step of less than a tenth is another file of the same size.
        if tensors > 0.9 * total or len(found) >= count:
            continue
        fit = _some_fit(solver.reweighted(tensors / total), want, good)
        if fit is None:
            continue
        size = render_bytes(file_bytes) if file_bytes is not None else f"about {render_bytes(tensors)}"
        text = f"{name} of this model ({size}) with {fit.context} tokens, which changes answers"
        knobs = {"context_tokens": fit.context, "slots": fit.slots}
        found.append(Nearest(text, knobs, name, tensors if file_bytes is None else file_bytes, True))
    return tuple(found)


def _smaller_files(model: ModelFacts, total: int) -> Iterator[tuple[str, int, int | None]]:
    """Each format with the bytes of its tensors and, for a model of the catalog, of its file.

    Of others the tensors' bytes are those of a Llama with as many weights.
    """
    row = find_alike(model)
    for name, bits in _BITS.items():
        form = find_format(name)
        if row is not None and form is not None:
            known = catalog_facts(CatalogChoice(row, form))
            if known.tensor_bytes is not None:
                yield name, known.tensor_bytes, known.file_bytes
                continue
        if model.parameters:
            yield name, round(bits * model.parameters / 8), None


def _some_fit(solver: Solver, want: Want, good: Callable[[Placement], bool]) -> Fit | None:
    """What fits with the wanted context, else with the minimum, with all slots or, where these are not pinned, one."""
    contexts = dict.fromkeys((want.context, want.context if want.fixed_context else want.minimum))
    for slots in dict.fromkeys((want.slots, want.slots if want.fixed_slots else 1)):
        for context in contexts:
            placement = solver.place(context, slots)
            if placement is not None and good(placement):
                return Fit(context, slots, placement)
    return None
