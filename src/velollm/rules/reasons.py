"""What the memory rule says: which memory is needed, what was given up, and what that costs."""

from __future__ import annotations

from collections.abc import Sequence

from velollm.facts import ModelFacts
from velollm.rules.base import Nearest
from velollm.rules.placement import Placement
from velollm.rules.room import Machine, Room, weight_bytes
from velollm.rules.solve import Fit, Want
from velollm.units import render_bytes

# Two channels of DDR4-3200: 2 x 8 bytes x 3,200 million transfers a second.
_USUAL_MAIN_BYTES_PER_S = 51_200_000_000


def render_fit(want: Want, fit: Fit, machine: Machine) -> str:
    """Why this context and these slots, and where everything goes."""
    return f"{_chosen(want, fit)}; {_needs(fit.placement, machine)}"


def _chosen(want: Want, fit: Fit) -> str:
    if (fit.context, fit.slots) == (want.context, want.slots):
        slots = f"each of {fit.slots} slots" if fit.slots > 1 else "one slot"
        return f"{fit.context} tokens in {slots}: {want.why}"
    wanted = f"{want.context} tokens" + (f" for each of {want.slots} slots" if want.slots > 1 else "")
    if fit.placement.where == "gpu+cpu" and fit.slots == want.slots and fit.context == want.minimum:
        return f"memory holds no more on the GPU: {wanted} would push more of the model off it ({want.why})"
    return f"memory holds no more: {wanted} would not fit ({want.why})"


def _needs(placement: Placement, machine: Machine) -> str:
    if placement.where == "cpu":
        assert machine.main is not None
        text = f"needs about {render_bytes(placement.main_bytes)} of {render_bytes(machine.main.available_bytes)}"
        return f"{text} main memory" + (", too much for GPU memory alone" if machine.cards else "")
    on_cards = sum(placement.card_bytes)
    free = sum(card.available_bytes for card in machine.cards)
    places = f"GPU memory on {len(machine.cards)} cards" if len(machine.cards) > 1 else "GPU memory"
    if placement.where == "gpu":
        return f"needs about {render_bytes(on_cards)} of {render_bytes(free)} {places} ({machine.cards[0].why})"
    return (
        f"needs about {render_bytes(on_cards)} of {render_bytes(free)} {places} and "
        f"{render_bytes(placement.main_bytes)} of main memory, too much for GPU memory alone: "
        f"{_spill(placement)}; {_price(placement, machine)}"
    )


def _spill(placement: Placement) -> str:
    if placement.spills == "experts":
        return f"the experts of {placement.cpu_moe_layers} of {placement.layers} layers go to main memory"
    experts = "all experts and " if placement.cpu_moe_layers >= placement.layers else ""
    inner = f"the feed-forward parts of {placement.cpu_ffn_layers} "
    if placement.spills == "feed-forward":
        return f"{experts}{inner}of {placement.layers} layers go to main memory"
    away = placement.layers + 1 - placement.gpu_layers
    if placement.cpu_ffn_layers > away:
        experts = f"{experts}{inner}layers and "
    kv = f" with {render_bytes(placement.kv_main_bytes)} of their KV cache" if placement.kv_main_bytes else ""
    return f"{experts}{away} of {placement.layers} layers go to main memory{kv}"


def _price(placement: Placement, machine: Machine) -> str:
    """What a spill costs: bytes of weights that each token reads, over the bandwidth of where they are."""
    total = placement.read_card_bytes + placement.read_main_bytes
    share = f"{render_bytes(placement.read_main_bytes)} of {render_bytes(total)} that each token reads"
    card, main, said = machine.card_bytes_per_s, machine.main_bytes_per_s, ""
    if not card or not total:
        return f"{share} come from there"
    if not main:
        main, said = _USUAL_MAIN_BYTES_PER_S, f" where main memory gives {_USUAL_MAIN_BYTES_PER_S / 1e9:.0f} GB/s"
    speed = (total / card) / (placement.read_card_bytes / card + placement.read_main_bytes / main)
    return f"{share} come from there: about {100 * speed:.0f}% of the decode speed{said}"


def render_inner_spill(placement: Placement, machine: Machine) -> str:
    """Why dense feed-forward parts are in main memory."""
    return (
        f"{_spill(placement)}, attention and the KV cache stay on the GPU: {_price(placement, machine)}; the engine's "
        "--fit would move whole layers, and stops where this is set"
    )


def render_instead(placement: Placement) -> str:
    """What would keep the KV cache on the GPU, where the plan leaves whole layers to the engine."""
    return (
        f"--set cpu_ffn_layers={placement.cpu_ffn_layers} would leave attention and the KV cache on the GPU, but holds "
        "for every model of the server"
    )


def render_misfit(model: ModelFacts, machine: Machine, nearest: Sequence[Nearest]) -> str:
    """Why a model does not fit, and the first thing that would."""
    rooms = [*machine.cards, *([machine.main] if machine.main else [])]
    if machine.shared and machine.main:
        rooms = [machine.main]
    text = f"does not fit: {render_bytes(weight_bytes(model))} of weights, {_rooms(rooms)} to be used"
    if not nearest:
        return f"{text}; a smaller model or quantization is needed"
    return f"{text}; nearest to it would be {nearest[0].text}"


def _rooms(rooms: Sequence[Room]) -> str:
    sizes: dict[str, int] = {}
    for room in rooms:
        sizes[room.place] = sizes.get(room.place, 0) + room.usable_bytes
    return " and ".join(f"{render_bytes(size)} of {place}" for place, size in sizes.items())
