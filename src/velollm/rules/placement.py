"""Where a model goes on a machine: all of it on GPUs, or what is left in main memory, and what that costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from velollm.rules.costs import Costs
from velollm.rules.room import Machine

Where = Literal["gpu", "gpu+cpu", "cpu"]
Spill = Literal["experts", "layers"]


@dataclass(frozen=True)
class Placement:
    """What each device holds, and what had to be left in main memory.

    ``card_bytes``: one entry for each GPU, roomiest first; ``main_bytes``: in main memory. ``gpu_layers``: layers on
    GPUs, the output as one more, and ``card_layers`` on each of them. ``cpu_moe_layers``: layers, from the first,
    whose experts are in main memory.
    ``kv_main_bytes``: KV cache and states that went to main memory with their layers. ``read_card_bytes`` and
    ``read_main_bytes``: weights that one token reads from each.
    """

    where: Where
    card_bytes: tuple[int, ...]
    main_bytes: int
    gpu_layers: int
    cpu_moe_layers: int
    layers: int
    spills: Spill | None = None
    kv_main_bytes: int = 0
    read_card_bytes: int = 0
    read_main_bytes: int = 0
    card_layers: tuple[int, ...] = ()

    @property
    def total_bytes(self) -> int:
        """All devices together."""
        return sum(self.card_bytes) + self.main_bytes


def anywhere(_: Placement) -> bool:
    """Any placement is good."""
    return True


def wholly_on_gpus(placement: Placement) -> bool:
    """Is everything that can be on GPUs there?"""
    return placement.where == "gpu"


def place_costs(
    costs: Costs, machine: Machine, gpu_layers: int | None = None, cpu_moe_layers: int | None = None
) -> Placement | None:
    """The best placement on this machine; None where nothing fits.

    All on GPUs; else experts in main memory, as few layers of them as it takes; else also whole layers, with their
    part of the KV cache; without a GPU all in main memory. Given numbers (of the user's) are kept as they are.
    """
    if not machine.cards:
        return _on_cpu(costs, machine)
    count = len(costs.layers)
    moe_steps = range(count + 1) if any(costs.experts) else range(1)
    if cpu_moe_layers is not None:
        moe_steps = range(min(cpu_moe_layers, count), min(cpu_moe_layers, count) + 1)
    layer_steps = range(count + 1, -1, -1)
    if gpu_layers is not None:
        layer_steps = range(min(gpu_layers, count + 1), min(gpu_layers, count + 1) - 1, -1)
    if moe := _first(moe_steps, lambda n: _fill(costs, machine, layer_steps[0], n) is not None):
        return _placed(costs, machine, layer_steps[0], moe[0])
    experts = moe_steps[-1]
    if layers := _first(layer_steps, lambda n: _fill(costs, machine, n, experts) is not None):
        return _placed(costs, machine, layers[0], experts)
    return None


def _first(steps: range, fits: Callable[[int], bool]) -> tuple[int] | None:
    """The first step that fits, where every later one would fit too; in a tuple, as it may be 0."""
    low, high = 0, len(steps)
    while low < high:
        middle = (low + high) // 2
        if fits(steps[middle]):
            high = middle
        else:
            low = middle + 1
    return (steps[low],) if low < len(steps) else None


def _fill(costs: Costs, machine: Machine, gpu_layers: int, cpu_moe_layers: int) -> list[tuple[int, int]] | None:
    """Bytes and layers on each GPU, filled one after the other with the last ``gpu_layers``; None: they do not fit.

    Larger devices come first and layers go in their order, so more memory anywhere never holds fewer layers.
    """
    count = len(costs.layers)
    first = max(0, count + 1 - gpu_layers)
    parts = [
        costs.layers[layer] + costs.cache[layer] + (0 if layer < cpu_moe_layers else costs.experts[layer])
        for layer in range(first, count)
    ]
    if gpu_layers > 0:
        parts.append(costs.output)
    # The buffer for weights of main memory is there before anything else.
    guest = costs.guest if first or cpu_moe_layers else 0
    rooms = [card.usable_bytes - (0 if number else guest) for number, card in enumerate(machine.cards)]
    filled = _pack(parts, costs.card, rooms)
    if filled is None or not filled[0][0]:
        return filled
    return [(filled[0][0] + guest, filled[0][1]), *filled[1:]]


def _pack(parts: Sequence[int], each: int, rooms: Sequence[int]) -> list[tuple[int, int]] | None:
    """Sum and number of the parts in each room, in order; ``each`` is taken in every room that is used."""
    found = [(0, 0)] * len(rooms)
    device = 0
    for part in parts:
        while device < len(rooms) and (found[device][0] or each) + part > rooms[device]:
            device += 1
        if device == len(rooms):
            return None
        size, count = found[device]
        found[device] = ((size or each) + part, count + 1)
    return found


def _placed(costs: Costs, machine: Machine, gpu_layers: int, cpu_moe_layers: int) -> Placement | None:
    """The placement with these numbers; None where main memory does not hold its part."""
    count = len(costs.layers)
    filled = _fill(costs, machine, gpu_layers, cpu_moe_layers)
    assert filled is not None
    on_cards = tuple(size for size, _ in filled)
    first = max(0, count + 1 - gpu_layers)
    if gpu_layers == 0:
        return _on_cpu(costs, machine)
    away = sum(costs.layers[:first]) + sum(costs.experts[: max(first, cpu_moe_layers)])
    cache = sum(costs.cache[:first])
    main = costs.main + away + cache + (costs.card if away else 0)
    if machine.main is None:
        if away:
            return None
    elif main + (sum(on_cards) if machine.shared else 0) > machine.main.usable_bytes:
        return _on_cpu(costs, machine)
    spills: Spill | None = "layers" if first else "experts" if away else None
    read_all = sum(costs.read_bytes(layer) for layer in range(count)) + costs.output
    read_main = sum(costs.read_bytes(layer) for layer in range(first))
    read_main += round(sum(costs.experts[first:cpu_moe_layers]) * costs.active)
    return Placement(
        "gpu+cpu" if away else "gpu",
        on_cards,
        main,
        gpu_layers,
        cpu_moe_layers if sum(costs.experts[:cpu_moe_layers]) else 0,
        count,
        spills,
        cache,
        read_all - read_main,
        read_main,
        tuple(layers for _, layers in filled),
    )


def _on_cpu(costs: Costs, machine: Machine) -> Placement | None:
    if machine.main is None or costs.all_main > machine.main.usable_bytes:
        return None
    read = sum(costs.read_bytes(layer) for layer in range(len(costs.layers))) + costs.output
    cards = (0,) * len(machine.cards)
    return Placement("cpu", cards, costs.all_main, 0, 0, len(costs.layers), None, 0, 0, read, cards)
