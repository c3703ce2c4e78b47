"""One owner of everything that shares memory: context, slots, KV cache, batch, and what is kept where."""

from __future__ import annotations

from dataclasses import dataclass, replace

from velollm.facts import Facts, ModelFacts
from velollm.knobs import Basis, Knobs, KnobValue, Wish
from velollm.rules.base import Advice, Nearest, Rule, Skip, integer, word
from velollm.rules.costs import PLACING
from velollm.rules.kv_format import KV_TYPE_KNOBS, choose_kv_types
from velollm.rules.nearest import find_nearest
from velollm.rules.placement import Placement, anywhere, wholly_on_gpus
from velollm.rules.reasons import render_fit, render_inner_spill, render_instead, render_misfit
from velollm.rules.room import Machine, computes_on_cpu, lacking_shape, machine_of
from velollm.rules.solve import LEAST_BATCH, Fit, Solver, Want, make_want

_GPU_BATCHES = (1024, 2048)
_SIZE_KNOBS = ("context_tokens", "slots")
_PLACE_KNOBS = ("kv_unified", "kv_offload", *PLACING)
# Their servers have one model, so what holds for the server holds for it alone.
_ONE_MODEL_BACKENDS = frozenset({"llamacpp", "embedded"})
_ENGINE_PLACES = "the engine's --fit moves layers by itself, and stops doing so where this is set"
_PLACE_REASONS = {
    "kv_unified": "each slot keeps its own cells, so one conversation cannot crowd out another",
    "kv_offload": "the KV cache stays where its layers are: attention in main memory is slow",
    "gpu_layers": _ENGINE_PLACES,
    "cpu_moe_layers": _ENGINE_PLACES,
    "cpu_ffn_layers": _ENGINE_PLACES,
}


@dataclass(frozen=True)
class Solution:
    """What a model gets on a machine. ``fit`` None: it does not fit; ``nearest`` is what would.

    ``want`` is what was asked for, ``solver`` can answer what else would fit.
    """

    machine: Machine
    want: Want
    solver: Solver
    fit: Fit | None
    nearest: tuple[Nearest, ...] = ()


def place_model(facts: Facts, model: ModelFacts, wish: Wish, knobs: Knobs | None = None) -> Solution | Skip:
    """Context, slots and devices of a model on a machine, as the rule would choose them; a Skip names lacking facts.

    ``knobs``: what is settled already (flash attention); the user's own come from ``wish.pins``.
    """
    machine = machine_of(facts, wish)
    if "gpus.vram_bytes" in machine.lacked or not (machine.cards or machine.main):
        return Skip("how much memory is available is unknown", machine.lacked)
    # A format that is set now stays, so it is what memory must hold.
    set_now = {name: wish.current[name] for name in KV_TYPE_KNOBS if wish.current.get(name) is not None}
    kv, _, _ = choose_kv_types(model, word(knobs or {}, "flash_attention", "auto"), {**set_now, **wish.pins})
    own = {name: wish.pins[name] for name in _PLACE_KNOBS if name in wish.pins}
    solver = Solver(model, machine, {**(knobs or {}), **kv, **own}, spills_ffn=_spills_ffn(model, machine, wish))
    want = make_want(model, wish)
    if solver.costs(want.context, 1, LEAST_BATCH) is None:
        return Skip("the memory of the model cannot be estimated", lacking_shape(model))
    batch = _pinned_batch(wish)
    fit = solver.solve(want, batch)
    if fit is None and machine.main is None:
        return Skip("it is too large for the GPU, and how much main memory is available is unknown", machine.lacked)
    nearest: tuple[Nearest, ...] = ()
    if fit is None:
        nearest = find_nearest(solver, want, anywhere)
    elif fit.placement.where == "gpu+cpu" and not solver.placed_by_user:
        nearest = find_nearest(solver, want, wholly_on_gpus)
    return Solution(machine, want, solver, fit, nearest)


def _spills_ffn(model: ModelFacts, machine: Machine, wish: Wish) -> bool:
    """May the plan itself put dense feed-forward parts in main memory?

    The engine's `--fit` stops where that is set, so nothing else must be left to it: no experts, no second card, none
    of the user's own numbers, and no other model that the same server loads.
    """
    if wish.backend not in _ONE_MODEL_BACKENDS or any(name in wish.pins for name in PLACING):
        return False
    return "cpu_ffn_layers" in wish.supported and _may_spill_ffn(model, machine)


def _may_spill_ffn(model: ModelFacts, machine: Machine) -> bool:
    return len(machine.cards) == 1 and not model.experts


def _pinned_batch(wish: Wish) -> int:
    """The physical batch to solve with: the user's, else the smallest that is chosen by itself."""
    pins = [size for name in ("batch", "ubatch") if (size := integer(wish.pins, name)) is not None]
    return min(pins) if pins else LEAST_BATCH


def decide(facts: Facts, knobs: Knobs, wish: Wish) -> Advice | Skip:
    """Spends free memory: the largest context that stays wholly on the GPU, for all slots, in f16; then the batch.

    Free is what each device has now, other processes counted (what the server's own models hold
    counts as free: they make room), less what must stay free: on a GPU 1 GiB, because the engine's
    `--fit` moves layers away where less would be left (LLAMA_ARG_FIT_TARGET says otherwise), and 457 MiB
    for the driver; in main memory a tenth and 512 MiB, a quarter at most, for other programs. A Mac's GPU
    gets what Metal may use, an integrated one what its driver may, both inside main memory; of a GPU in
    slices only the largest counts, of a container only what its limit leaves.

    Wanted is what the profile wants, or the engine's own context where that is more; never above the
    training context. A context below the engine's own is taken only where memory forces it, or the profile is
    there to save memory: cutting a conversation short gives no error.

    Things are given up in this order: context down to the profile's minimum; slots; being wholly on
    the GPU; in that case the experts of as few layers as it takes go to main memory, and only then dense
    feed-forward parts, or whole layers with their part of the KV cache, whichever leaves less in main memory
    that a token reads; the reason names it together with what it costs. Last, the
    context falls below the minimum. So more memory never gives less context. Several GPUs are filled
    one after the other, the roomiest first.

    A KV cache in another format can change answers, so only
    `--set kv_type_k=… kv_type_v=…` chooses one, and it goes back to f16 where the engine would refuse it (a
    quantized V without flash attention, blocks of 32 that do not divide the head size, two formats with
    latent attention). What goes to which device is left to the engine's `--fit`, which sees the real
    sizes; a number of layers that is set makes it give up where memory is short. Only feed-forward parts are
    put in main memory by the plan itself (`cpu_ffn_layers`), because the engine moves whole layers: for a
    dense model, on one card, where the server has no other model. In Ollama they would be moved in every
    model of the server, so there the reason names the number, and `--set` sets it. `--set gpu_layers=…`,
    `--set cpu_moe_layers=…` and `--set cpu_ffn_layers=…` are yours, and the plan then counts with them.

    The batch is 512 on a CPU, which gains nothing from more. On a GPU it is the engine's own as far as
    memory holds it beside the context, with larger ones named for the trial. The physical batch is never
    larger than the logical one: the engine would cut it.

    Where the model does not fit, the plan says so, with up to three things near by that would: a smaller
    context, a KV cache in q8_0, a smaller quantization.
    """
    kv, kv_reason, kv_basis = choose_kv_types(facts.model, word(knobs, "flash_attention", "auto"), wish.pins)
    said: dict[str, tuple[str, Basis]] = dict.fromkeys(kv, (kv_reason, kv_basis))
    values: dict[str, KnobValue] = dict(kv)
    for name in _PLACE_KNOBS:
        values[name] = wish.pins.get(name, wish.defaults.get(name))
        said[name] = ("you asked for it with --set", "user") if name in wish.pins else (_PLACE_REASONS[name], "engine")
    solution: Solution | Skip = Skip("no model is known, so its memory is not either", ("model",))
    if facts.model is not None:
        solution = place_model(facts, facts.model, wish, {**knobs, **kv})
    batches = _choose_batch(facts, wish, solution)
    left = {}
    if isinstance(batches, Skip):
        left = {"batch": batches, "ubatch": batches}
        candidates: tuple[dict[str, KnobValue], ...] = ()
    else:
        values |= batches.values
        said |= dict.fromkeys(batches.values, (batches.reason, batches.basis))
        candidates = tuple(dict(candidate) for candidate in batches.candidates)
    return _with_size(facts, wish, solution, Advice(values, "", candidates=candidates, said=said, left=left))


def _with_size(facts: Facts, wish: Wish, solution: Solution | Skip, advice: Advice) -> Advice:
    """The advice with context and slots, or with why there are none."""
    pins = {name: wish.pins[name] for name in _SIZE_KNOBS if name in wish.pins}
    if isinstance(solution, Skip):
        if len(pins) == len(_SIZE_KNOBS):
            return _sized(advice, pins, "you asked for it with --set", "user")
        return _left(advice, solution)
    want, fit = solution.want, solution.fit
    if fit is None:
        assert facts.model is not None
        reason = render_misfit(facts.model, solution.machine, solution.nearest)
        if not pins:
            return replace(_left(advice, Skip(f"the model {reason}")), nearest=solution.nearest)
        values = {"context_tokens": want.context if want.fixed_context else want.minimum}
        values["slots"] = want.slots if want.fixed_slots else 1
        advice = replace(advice, nearest=solution.nearest)
        return _sized(advice, values, f"as asked with --set, but the model {reason}", "user")
    reason = render_fit(want, fit, solution.machine)
    more = _longer_context(solution)
    advice = replace(advice, placement=fit.placement, nearest=solution.nearest, candidates=advice.candidates + more)
    if placing := _placing(solution, fit.placement):
        why = render_inner_spill(fit.placement, solution.machine)
        said = {**advice.said, **dict.fromkeys(placing, (why, "arithmetic"))}
        advice = replace(advice, values={**advice.values, **placing}, said=said)
    elif instead := _instead(solution, wish):
        reason = f"{reason}; {instead}"
    values = {"context_tokens": fit.context, "slots": fit.slots}
    return _sized(advice, values, reason, "user" if pins else "arithmetic")


def _placing(solution: Solution, placement: Placement) -> dict[str, KnobValue]:
    """What must be set for a placement that the engine would not find by itself; empty where it would."""
    if not solution.solver.spills_ffn or not placement.cpu_ffn_layers:
        return {}
    placing: dict[str, KnobValue] = {"cpu_ffn_layers": placement.cpu_ffn_layers}
    if placement.gpu_layers <= placement.layers:
        placing["gpu_layers"] = placement.gpu_layers
    return placing


def _instead(solution: Solution, wish: Wish) -> str:
    """What the user may set where whole layers spill and the plan must not set it, with what it would cost."""
    fit, solver = solution.fit, solution.solver
    if fit is None or fit.placement.spills != "layers" or solver.placed_by_user or solver.spills_ffn:
        return ""
    if "cpu_ffn_layers" not in wish.supported or not _may_spill_ffn(solver.model, solution.machine):
        return ""
    placement = replace(solver, spills_ffn=True).place(fit.context, fit.slots)
    return "" if placement is None or placement.spills != "feed-forward" else render_instead(placement)


def _sized(advice: Advice, values: Knobs, reason: str, basis: Basis) -> Advice:
    said = {**advice.said, **dict.fromkeys(_SIZE_KNOBS, (reason, basis))}
    return replace(advice, values={**advice.values, **values}, reason=reason, basis=basis, said=said)


def _left(advice: Advice, skip: Skip) -> Advice:
    """The advice without context and slots."""
    return replace(advice, reason=skip.reason, left={**dict.fromkeys(_SIZE_KNOBS, skip), **advice.left})


def _longer_context(solution: Solution) -> tuple[dict[str, KnobValue], ...]:
    """The wanted context as worth measuring, where a spill left it at the minimum and more would fit as well."""
    want, fit = solution.want, solution.fit
    if fit is None or fit.placement.where != "gpu+cpu" or fit.context == want.context:
        return ()
    found = solution.solver.largest_context(fit.context, want.context, fit.slots, LEAST_BATCH, anywhere)
    if found is None or found.context <= fit.context:
        return ()
    return ({"context_tokens": found.context, **_placing(solution, found.placement)},)


def _choose_batch(facts: Facts, wish: Wish, solution: Solution | Skip) -> Advice | Skip:
    pinned = {name: size for name in ("batch", "ubatch") if (size := integer(wish.pins, name)) is not None}
    if pinned:
        return _pinned_batches(wish, pinned.get("batch"), pinned.get("ubatch"))
    on_cpu = computes_on_cpu(facts, wish)
    if on_cpu is None:
        return Skip("whether there is a GPU is unknown", ("gpus",))
    if on_cpu:
        values = {"batch": LEAST_BATCH, "ubatch": LEAST_BATCH}
        return Advice(values, "a CPU gains nothing from larger steps, and they take memory", "table")
    batch = integer(wish.defaults, "batch") or LEAST_BATCH
    ubatch = min(batch, integer(wish.defaults, "ubatch") or LEAST_BATCH)
    held = _largest_held(solution, max(ubatch, *_GPU_BATCHES))
    candidates = tuple({"batch": max(batch, n), "ubatch": n} for n in _GPU_BATCHES if ubatch < n <= held)
    if ubatch <= held:
        return Advice({"batch": batch, "ubatch": ubatch}, "the engine's own size for a GPU", "engine", candidates)
    reason = f"memory holds no larger one beside the context; the engine's own is {ubatch}"
    return Advice({"batch": held, "ubatch": held}, reason, "arithmetic")


def _largest_held(solution: Solution | Skip, most: int) -> int:
    """The largest physical batch, halved from ``most`` down, with which everything stays where it is."""
    if isinstance(solution, Skip) or solution.fit is None:
        return most
    fit, batch = solution.fit, most
    while batch > LEAST_BATCH:
        placement = solution.solver.place(fit.context, fit.slots, batch)
        if placement is not None and _same_place(placement, fit.placement):
            return batch
        batch //= 2
    return LEAST_BATCH


def _same_place(one: Placement, other: Placement) -> bool:
    return (one.where, one.spills, one.cpu_ffn_layers) == (other.where, other.spills, other.cpu_ffn_layers)


def _pinned_batches(wish: Wish, batch: int | None, ubatch: int | None) -> Advice:
    """What was pinned; where one of the two was, the other follows, so that ubatch stays within batch."""
    if batch is not None and ubatch is not None:
        if ubatch <= batch:
            return Advice({"batch": batch, "ubatch": ubatch}, "you asked for it with --set", "user")
        reason = "as asked with --set; ubatch cannot be larger than batch"
        return Advice({"batch": batch, "ubatch": batch}, reason, "user")
    if batch is not None:
        values = {"batch": batch, "ubatch": min(batch, integer(wish.defaults, "ubatch") or LEAST_BATCH)}
        return Advice(values, "batch as asked with --set, ubatch within it", "user")
    assert ubatch is not None
    values = {"batch": max(ubatch, integer(wish.defaults, "batch") or LEAST_BATCH), "ubatch": ubatch}
    return Advice(values, "ubatch as asked with --set, batch large enough for it", "user")


rule = Rule(
    "fit-memory",
    (*_SIZE_KNOBS, "kv_type_k", "kv_type_v", *_PLACE_KNOBS, "batch", "ubatch"),
    decide,
    needs=("flash_attention",),
    title="Everything that shares memory",
)
