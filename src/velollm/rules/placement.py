"""Where a model goes on a machine: all of it on GPUs, or what is left in main memory, and what that costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from velollm.rules.costs import Costs
from velollm.rules.room import Machine

Where = Literal["gpu", "gpu+cpu", "cpu"]
Spill = Literal["experts", "feed-forward", "layers"]


@dataclass(frozen=True)
class Placement:
    """What each device holds, and what had to be left in main memory.

    ``card_bytes``: one entry for each GPU, roomiest first; ``main_bytes``: in main memory. ``gpu_layers``: layers on
    GPUs, the output as one more, and ``card_layers`` on each of them. ``cpu_moe_layers``: layers, from the first,
    whose experts are in main memory, ``cpu_ffn_layers``: whose dense feed-forward part is.
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
    cpu_ffn_layers: int = 0

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


@dataclass(frozen=True)
class Split:
    """Layers on GPUs from the last, and layers from the first whose experts or dense feed-forward part are not."""

    gpu_layers: int
    cpu_moe_layers: int = 0
    cpu_ffn_layers: int = 0


def place_costs(
    costs: Costs, machine: Machine, own: Mapping[str, int | None] | None = None, *, spills_ffn: bool = False
) -> Placement | None:
    """The best placement on this machine; None where nothing fits.

    All on GPUs; else experts in main memory, as few layers of them as it takes. Else also, with ``spills_ffn``, the
    dense feed-forward parts of as few layers as it takes, or whole layers with their part of the KV cache, whichever
    leaves less in main memory that one token reads: main memory is the slower one, so that is the faster. Where both
    leave the same, the feed-forward parts, because the KV cache stays on the GPU. Without a GPU all is in main memory.
    Given numbers (of the user's, by knob) are kept as they are.
    """
    if not machine.cards:
        return _on_cpu(costs, machine)
    own = own or {}
    count = len(costs.layers)
    layers = _steps(own.get("gpu_layers"), count + 1, range(count + 1, -1, -1))
    moe = _steps(own.get("cpu_moe_layers"), count, range(count + 1 if any(costs.experts) else 1))
    ffn = _steps(own.get("cpu_ffn_layers"), count, range(count + 1 if spills_ffn and any(costs.feed_forward) else 1))

    def first(steps: range, split: Callable[[int], Split]) -> Placement | None:
        found = _first(steps, lambda n: _fill(costs, machine, split(n)) is not None)
        return None if found is None else _placed(costs, machine, split(found[0]))

    whole, most = layers[0], moe[-1]
    if _fill(costs, machine, Split(whole, most, ffn[0])) is not None:
        return first(moe, lambda n: Split(whole, n, ffn[0]))
    spills = [first(ffn, lambda n: Split(whole, most, n))]
    # Whole layers with none of those parts away besides, and with all.
    spills.append(first(layers, lambda n: Split(n, most, ffn[0])))
    if len(ffn) > 1:
        spills.append(first(layers, lambda n: Split(n, most, ffn[-1])))
    found = [placement for placement in spills if placement is not None]
    return min(found, key=lambda placement: _slow_bytes(placement, costs.slots), default=None)


def _steps(own: int | None, most: int, steps: range) -> range:
    """The steps, or the user's own number alone, as far as there are so many layers."""
    return steps if own is None else range(min(own, most), min(own, most) + 1)


def _slow_bytes(placement: Placement, slots: int) -> float:
    """What one token reads from main memory where its slot's context is full."""
    return placement.read_main_bytes + placement.kv_main_bytes / slots


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


def _fill(costs: Costs, machine: Machine, split: Split) -> list[tuple[int, int]] | None:
    """Bytes and layers on each GPU, filled one after the other with the last layers; None: they do not fit.

    Larger devices come first and layers go in their order, so more memory anywhere never holds fewer layers.
    """
    count = len(costs.layers)
    first = max(0, count + 1 - split.gpu_layers)
    parts = [
        costs.layers[layer]
        + costs.cache[layer]
        + (0 if layer < split.cpu_moe_layers else costs.experts[layer])
        - (costs.feed_forward[layer] if layer < split.cpu_ffn_layers else 0)
        for layer in range(first, count)
    ]
    if split.gpu_layers > 0:
        parts.append(costs.output)
    # The buffer for weights of main memory is there before anything else.
    guest = costs.guest if first or split.cpu_moe_layers or split.cpu_ffn_layers else 0
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


def _placed(costs: Costs, machine: Machine, split: Split) -> Placement | None:
    """The placement with these numbers; None where main memory does not hold its part."""
    count = len(costs.layers)
    filled = _fill(costs, machine, split)
    assert filled is not None
    on_cards = tuple(size for size, _ in filled)
    first = max(0, count + 1 - split.gpu_layers)
    if split.gpu_layers == 0:
        return _on_cpu(costs, machine)
    inner = sum(costs.feed_forward[first : split.cpu_ffn_layers])
    experts = sum(costs.experts[first : split.cpu_moe_layers])
    away = sum(costs.layers[:first]) + sum(costs.experts[:first]) + experts + inner
    cache = sum(costs.cache[:first])
    main = costs.main + away + cache + (costs.card if away else 0)
    if machine.main is None:
        if away:
            return None
    elif main + (sum(on_cards) if machine.shared else 0) > machine.main.usable_bytes:
        return _on_cpu(costs, machine)
    spills: Spill | None = "layers" if first else "feed-forward" if inner else "experts" if away else None
    read_all = sum(costs.read_bytes(layer) for layer in range(count)) + costs.output
    read_main = sum(costs.read_bytes(layer) for layer in range(first)) + inner + round(experts * costs.active)
    return Placement(
        "gpu+cpu" if away else "gpu",
        on_cards,
        main,
        split.gpu_layers,
        split.cpu_moe_layers if sum(costs.experts[: split.cpu_moe_layers]) else 0,
        count,
        spills,
        cache,
        read_all - read_main,
        read_main,
        tuple(layers for _, layers in filled),
        split.cpu_ffn_layers if inner else 0,
    )


def _on_cpu(costs: Costs, machine: Machine) -> Placement | None:
    if machine.main is None or costs.all_main > machine.main.usable_bytes:
        return None
    read = sum(costs.read_bytes(layer) for layer in range(len(costs.layers))) + costs.output
    cards = (0,) * len(machine.cards)
    return Placement("cpu", cards, costs.all_main, 0, 0, len(costs.layers), None, 0, 0, read, cards)
