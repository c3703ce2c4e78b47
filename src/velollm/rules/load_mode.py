"""How the weights get into memory."""

from __future__ import annotations

from velollm.facts import Facts
from velollm.knobs import Knobs, Wish
from velollm.rules.base import Advice, Rule, Skip, pinned
from velollm.rules.room import computes_on_cpu, main_memory, weight_bytes
from velollm.units import render_bytes


def decide(facts: Facts, knobs: Knobs, wish: Wish) -> Advice | Skip:
    """`none` on a CPU with enough memory, `mmap` with too little, `auto` with a GPU or on a Mac.

    A CPU computes on a repacked copy of the weights; mapping the file keeps the file's pages beside
    that copy (1,230 MiB in place of 716 for a model of 600). Where the weights do not fit into memory, mapped
    pages can be dropped and read again, which is slow but does not end the engine. Pinning
    pages (`mlock`) is never chosen: it starves everything else.
    """
    if advice := pinned(wish, "load_mode"):
        return advice
    on_cpu = computes_on_cpu(facts, wish)
    if on_cpu is None:
        return Skip("whether there is a GPU is unknown", ("gpus",))
    if not on_cpu:
        return Advice({"load_mode": "auto"}, "with a GPU the engine chooses by device", "engine")
    memory = main_memory(facts, wish)
    weights = weight_bytes(facts.model) if facts.model else None
    if memory is None:
        return Skip("how much memory is available is unknown", ("memory.available_bytes",))
    if weights is None:
        return Skip("the size of the model is unknown", ("model.tensor_bytes",))
    sizes = f"{render_bytes(weights)} of weights, {render_bytes(memory.available_bytes)} available"
    if weights > memory.usable_bytes:
        return Advice({"load_mode": "mmap"}, f"too little memory: mapped pages can be dropped ({sizes})")
    return Advice({"load_mode": "none"}, f"read once: mapping would keep a second copy ({sizes})")


rule = Rule("load-mode", ("load_mode",), decide, title="How the weights get into memory")
