"""One model in one format on one machine: does it fit, how fast would it be, and how well is that known."""

from __future__ import annotations

from dataclasses import dataclass

from velollm.facts import Facts, ModelFacts
from velollm.knobs import Basis, Wish
from velollm.models.catalog import CatalogChoice
from velollm.models.reads import TokenCost, active_weight_bytes, estimate_token_cost
from velollm.models.speed import DeviceSpeed, Estimated, Rate, cpu_speed, estimate_decode, estimate_ttft, gpu_speed
from velollm.recommend.history import Calibration
from velollm.rules.base import Skip
from velollm.rules.fit_memory import place_model
from velollm.rules.placement import Placement
from velollm.rules.room import machine_of, used_gpus
from velollm.units import render_bytes


@dataclass(frozen=True)
class Speeds:
    """Rates of the devices that an engine would use: ``gpu`` None where it computes on the CPU alone."""

    gpu: DeviceSpeed | None
    cpu: DeviceSpeed


@dataclass(frozen=True)
class Option:
    """What one model in one format would do here. ``choice`` None: a model that is no part of the catalog.

    ``decode`` (tokens/s of one user) and ``ttft`` (seconds, for a prompt of ``prompt_tokens``) are None where a rate is
    unknown. ``memory_bytes``: on all devices together, with context and slots as placed.
    """

    name: str
    format: str
    choice: CatalogChoice | None
    model: ModelFacts
    context_tokens: int
    slots: int
    placement: Placement
    prompt_tokens: int
    decode: Estimated | None
    ttft: Estimated | None

    @property
    def memory_bytes(self) -> int:
        """Bytes that it takes on all devices together."""
        return self.placement.total_bytes

    @property
    def memory_basis(self) -> Basis:
        """What that rests on: arithmetic, or that corrected by what the engine here last allocated for the model."""
        return "corrected" if self.model.memory_factors else "arithmetic"

    @property
    def download_bytes(self) -> int | None:
        """Size of its file."""
        return self.model.file_bytes if self.model.file_bytes is not None else self.model.tensor_bytes


@dataclass(frozen=True)
class Misfit:
    """A model in one format that is no option here, and why."""

    name: str
    format: str
    reason: str


def device_speeds(facts: Facts, wish: Wish, read: Rate | None, multiply: Rate | None) -> Speeds:
    """Rates of this machine. Of several GPUs the slowest counts for all; one of unknown rate makes it unknown."""
    cpu = cpu_speed(facts, read, multiply)
    gpus = [gpu_speed(gpu, facts) for gpu in used_gpus(facts, wish) or ()]
    if not gpus:
        return Speeds(None, cpu)
    return Speeds(min(gpus, key=lambda gpu: gpu.read.per_s if gpu.read is not None else 0.0), cpu)


def weigh(
    name: str,
    form: str,
    choice: CatalogChoice | None,
    model: ModelFacts,
    facts: Facts,
    wish: Wish,
    speeds: Speeds,
    calibration: Calibration,
) -> Option | Misfit:
    """The model on this machine under the wishes of the profile."""
    profile = wish.profile
    if (reason := _hopeless(model, facts, wish, speeds)) is not None:
        return Misfit(name, form, reason)
    solution = place_model(facts.model_copy(update={"model": model}), model, wish)
    if isinstance(solution, Skip):
        return Misfit(name, form, solution.reason)
    if solution.fit is None:
        return Misfit(name, form, "does not fit")
    fit = solution.fit
    least = min(profile.minimum_context_tokens, model.context_train or profile.minimum_context_tokens)
    if fit.context < least:
        return Misfit(name, form, f"leaves room for {fit.context} tokens of context, {least} are wanted")
    depth = min(profile.prompt_tokens, fit.context)
    cost = estimate_token_cost(model, depth_tokens=depth, knobs={})
    decode = ttft = None
    if cost is not None:
        decode = estimate_decode(_read_parts(cost, fit.placement, speeds), sparse=bool(model.experts))
        ttft = estimate_ttft(depth, _work_parts(cost, fit.placement, speeds), decode)
        decode, ttft = calibration.applied(model, decode, ttft, on_gpu=fit.placement.where != "cpu")
    return Option(name, form, choice, model, fit.context, fit.slots, fit.placement, depth, decode, ttft)


def _hopeless(model: ModelFacts, facts: Facts, wish: Wish, speeds: Speeds) -> str | None:
    """Why no placement need be looked for: more weights than memory, or a speed that is too low or unknown anyhow."""
    machine = machine_of(facts, wish)
    weights = model.tensor_bytes
    if weights is None or machine.lacked:
        return None
    cards = sum(room.usable_bytes for room in machine.cards)
    main = machine.main.usable_bytes if machine.main is not None else 0
    total = main if machine.shared or not machine.cards else cards + main
    if weights > total:
        return f"does not fit: {render_bytes(weights)} of weights, {render_bytes(total)} of memory"
    spilled = max(0, weights - cards) if machine.cards else 0
    if spilled and speeds.cpu.read is None:
        return "part of it would be in main memory, whose speed is unknown"
    return None


def best_decode(model: ModelFacts, facts: Facts, wish: Wish, speeds: Speeds) -> float | None:
    """Decode tokens/s that no placement of the model can beat: as much as fits on the GPU, and no cache.

    None where that is unknown.
    """
    active, weights = active_weight_bytes(model), model.tensor_bytes
    if active is None or weights is None:
        return None
    if speeds.gpu is None:
        best = estimate_decode([(speeds.cpu, active)], sparse=bool(model.experts))
        return None if best is None else best.value
    cards = sum(room.usable_bytes for room in machine_of(facts, wish).cards)
    # Routed experts leave the GPU first, and only a few of them are read.
    used = (model.experts_used or 0) / model.experts if model.experts else 1.0
    main = min(active, round(max(0, weights - cards) * used))
    best = estimate_decode([(speeds.gpu, active - main), (speeds.cpu, main)], sparse=bool(model.experts))
    return None if best is None else best.value


def _main_share(placement: Placement) -> float:
    """Share of the layers that main memory holds whole."""
    if placement.where == "cpu":
        return 1.0
    away = max(0, placement.layers + 1 - placement.gpu_layers)
    return min(1.0, away / placement.layers) if placement.layers else 0.0


def _read_parts(cost: TokenCost, placement: Placement, speeds: Speeds) -> list[tuple[DeviceSpeed, int]]:
    """Bytes of one token by device: weights as they are placed, the cache with its layers."""
    if placement.where == "cpu" or speeds.gpu is None:
        return [(speeds.cpu, cost.read_bytes)]
    total = placement.read_card_bytes + placement.read_main_bytes
    main_weights = placement.read_main_bytes / total if total else 0.0
    main = cost.weight_bytes * main_weights + cost.cache_bytes * _main_share(placement)
    return [(speeds.gpu, round(cost.read_bytes - main)), (speeds.cpu, round(main))]


def _work_parts(cost: TokenCost, placement: Placement, speeds: Speeds) -> list[tuple[DeviceSpeed, float]]:
    """Operations for a token of the prompt by device, in the shares of the weights."""
    if placement.where == "cpu" or speeds.gpu is None:
        return [(speeds.cpu, cost.prompt_operations)]
    total = placement.read_card_bytes + placement.read_main_bytes
    main = cost.prompt_operations * (placement.read_main_bytes / total if total else 0.0)
    return [(speeds.gpu, cost.prompt_operations - main), (speeds.cpu, main)]
