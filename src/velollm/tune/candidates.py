"""What is worth racing: settings around a plan, each one knob (or what belongs together) away from it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from velollm.facts import Facts
from velollm.knobs import KNOBS, NGRAM_KINDS, QUANTIZED_KV_TYPES, Knobs, KnobValue, Profile
from velollm.models.mtp import runs_heads

# In this order: what usually decides most comes first, because the time may end before the last.
GROUPS = (
    *("threads", "placement", "speculation", "slots", "batch", "flash_attention", "batch_threads"),
    *("repack", "kv_unified", "openmp_wait", "load_mode", "priority", "kv_type", "cache_reuse"),
)
_ASKED_ONLY = frozenset({"priority", "load_mode"})
"""Raced only where they are named: one takes from other programs, the other is about memory."""

_LEAST_UBATCH, _MOST_UBATCH = 64, 4096
_MOST_THREADS = 4
_SPILLS = ("cpu_moe_layers", "cpu_ffn_layers")
_DRAFT_LENGTHS = ((3, 0), (6, 0), (3, None))
_HEADS_LENGTHS = ((2, 0), (4, 0), (2, None), (4, None))
# Kind, longest guess and match; None is the engine's own. Short ones because the engine's own (a match of 24 and 48
# tokens at once for ngram-mod) fire on long repeats only.
_NGRAMS: tuple[tuple[str, int | None, int | None], ...] = (
    ("ngram-mod", None, None),
    ("ngram-mod", 16, 8),
    ("ngram-simple", None, None),
    ("ngram-map-k", None, None),
    ("ngram-map-k", 16, 6),
)
_NO_GUESS: Knobs = {
    "speculation": "none",
    "speculation_tokens": None,
    "speculation_match": None,
    "draft_model": None,
    "polling": None,
}


@dataclass(frozen=True)
class Candidate:
    """Values to lay over a setting, of one ``group``. ``lossy``: they can change what the model says."""

    group: str
    values: Knobs
    lossy: bool = False

    @property
    def name(self) -> str:
        """The values as a person reads them; what only says "as usual" is left out."""
        shown = {k: v for k, v in self.values.items() if v is not None} or self.values
        return ", ".join(f"{name}={_short(value)}" for name, value in shown.items())


@dataclass(frozen=True)
class Draft:
    """A file that guesses for the model, and the kind of speculation that it is for."""

    path: str
    kind: str = "draft-simple"


@dataclass(frozen=True)
class Ground:
    """What candidates depend on besides the setting they start from.

    ``supported``: knobs of the backend. ``fixed``: knobs that the user has set, which are not raced. ``asked``: only
    these knobs (None: all that are usual). ``drafts``: those that fit the model. ``openmp``: whether the engine is
    built with it. ``fits``: would these knobs fit in memory?
    """

    facts: Facts
    profile: Profile
    supported: frozenset[str]
    fixed: Collection[str] = ()
    asked: frozenset[str] | None = None
    drafts: Sequence[Draft] = ()
    openmp: bool = False
    lossy: bool = False
    fits: Callable[[Knobs], bool] = field(default=lambda _: True)


def groups_of(ground: Ground) -> tuple[str, ...]:
    """The groups in the order of the race: guessing comes last where only text could help that hardly repeats."""
    model = ground.facts.model
    if _repeats(ground) or ground.drafts or (model is not None and runs_heads(model)):
        return GROUPS
    return (*(group for group in GROUPS if group != "speculation"), "speculation")


def _repeats(ground: Ground) -> bool:
    """Does the profile's text repeat itself, or has somebody asked?"""
    return bool(ground.profile.speculation) or _is_named("speculation", ground)


def _is_named(knob: str, ground: Ground) -> bool:
    return ground.asked is not None and knob in ground.asked


def list_candidates(group: str, base: Knobs, ground: Ground) -> tuple[Candidate, ...]:
    """The candidates of one group around ``base``: likelier ones first, none equal to it, none that cannot be set."""
    found: dict[tuple[tuple[str, KnobValue], ...], Candidate] = {}
    for values in _SOURCES[group](base, ground):
        candidate = Candidate(group, values, lossy=any(KNOBS[name].changes_answer for name in values))
        if _is_open(candidate, base, ground):
            found.setdefault(tuple(sorted(values.items(), key=lambda item: item[0])), candidate)
    return tuple(found.values())


def refine(winner: Candidate, base: Knobs, ground: Ground) -> tuple[Candidate, ...]:
    """Candidates around one that has won, where its group has more of them: lengths of guesses."""
    kind, tokens = base.get("speculation"), base.get("speculation_tokens")
    if winner.group != "speculation" or kind == "none":
        return ()
    if kind in NGRAM_KINDS and "speculation_match" not in ground.supported:
        return ()  # an engine without a place for the one length has none for the other
    usual = 3 if str(kind).startswith("draft") else 48
    length = tokens if isinstance(tokens, int) else usual
    match = base.get("speculation_match")
    overlays: list[dict[str, KnobValue]] = [{"speculation_tokens": max(1, length * 2)}]
    overlays.append({"speculation_tokens": max(1, length // 2)})
    if isinstance(match, int):
        overlays.append({"speculation_match": max(2, match // 2)})
    made = (Candidate("speculation", {**_guess_of(base), **overlay}) for overlay in overlays)
    return tuple(candidate for candidate in made if _is_open(candidate, base, ground))


def _guess_of(base: Knobs) -> dict[str, KnobValue]:
    return {name: base.get(name) for name in _NO_GUESS}


def _is_open(candidate: Candidate, base: Knobs, ground: Ground) -> bool:
    """May it be raced? It differs, every knob of it can be set and is free, and it fits in memory."""
    values = candidate.values
    if all(base.get(name) == value for name, value in values.items()):
        return False
    changed = [name for name, value in values.items() if base.get(name) != value]
    if candidate.lossy and not ground.lossy:
        return False
    if any(name not in ground.supported or name in ground.fixed for name in changed):
        return False
    if ground.asked is not None:
        if not any(name in ground.asked for name in changed):
            return False
    elif candidate.group in _ASKED_ONLY:
        return False
    return ground.fits({**base, **values})


def _threads(base: Knobs, ground: Ground) -> Iterator[Knobs]:
    """Around the present number: one less, half, all cores, one."""
    now = base.get("threads")
    cores = _cores(ground.facts)
    if not isinstance(now, int) or cores is None:
        return
    wanted = dict.fromkeys((now - 1, now // 2, cores, now + 1, 1))
    yield from ({"threads": count} for count in [n for n in wanted if 1 <= n <= cores and n != now][:_MOST_THREADS])


def _cores(facts: Facts) -> int | None:
    cpu = facts.cpu
    if cpu is None:
        return None
    return cpu.online_physical_cores or cpu.physical_cores or cpu.logical_cores


def _batch_threads(base: Knobs, ground: Ground) -> Iterator[Knobs]:
    """All hardware threads for prompts, where they are more than compute tokens."""
    cpu, now = ground.facts.cpu, base.get("threads")
    logical, cores = (cpu.logical_cores if cpu else None), _cores(ground.facts)
    for count in dict.fromkeys((logical, cores)):
        if count and isinstance(now, int) and count > now:
            yield {"batch_threads": count}


def _placement(base: Knobs, ground: Ground) -> Iterator[Knobs]:
    """With a GPU: the engine's own choice, all layers there, none; what spills from layers, a little more or less."""
    if not ground.facts.gpus:
        return
    layers = ground.facts.model.layers if ground.facts.model else None
    yield dict.fromkeys(("gpu_layers", *_SPILLS))
    if layers is not None:
        yield {"gpu_layers": layers + 1}
    for name in _SPILLS:
        away = base.get(name)
        if isinstance(away, int) and away > 0 and layers is not None:
            step = max(1, layers // 8)
            yield {name: max(0, away - step)}
            yield {name: min(layers, away + step)}
    yield {"gpu_layers": 0}


def _speculation(base: Knobs, ground: Ground) -> Iterator[Knobs]:
    """No guessing, guesses of a draft or of the model's own layers, and guesses from earlier text."""
    yield _NO_GUESS
    for draft in ground.drafts:
        # A draft has threads of its own, from which those of the model must not keep the cores.
        for tokens, polling in _DRAFT_LENGTHS:
            lengths: Knobs = {"speculation_tokens": tokens, "polling": polling}
            yield {**_NO_GUESS, "speculation": draft.kind, "draft_model": draft.path, **lengths}
    model = ground.facts.model
    if model is not None and runs_heads(model):
        # They have threads of their own too: the kept ones are the model's alone (common/common.cpp:1800 of llama.cpp).
        for tokens, polling in _HEADS_LENGTHS:
            yield {**_NO_GUESS, "speculation": "draft-mtp", "speculation_tokens": tokens, "polling": polling}
    # Where the profile's text hardly repeats itself, only the short ones can find anything.
    for kind, longest, match in _NGRAMS if _repeats(ground) else [found for found in _NGRAMS if found[2] is not None]:
        yield {**_NO_GUESS, "speculation": kind, "speculation_tokens": longest, "speculation_match": match}
    # The weakest of them on text that repeats, so only for those who have the time.
    if _is_named("speculation", ground):
        yield {**_NO_GUESS, "speculation": "ngram-cache"}


def _slots(base: Knobs, ground: Ground) -> Iterator[Knobs]:
    """Where the total of several users counts: twice and half as many at once."""
    slots = base.get("slots")
    if ground.profile.objective != "aggregate" or not isinstance(slots, int):
        return
    yield from ({"slots": count} for count in (slots * 2, slots // 2) if 1 <= count <= 16)


def _batch(base: Knobs, ground: Ground) -> Iterator[Knobs]:
    """Half and twice of what is computed in one go, and twice that again."""
    ubatch, batch, context = base.get("ubatch"), base.get("batch"), base.get("context_tokens")
    if not isinstance(ubatch, int) or not isinstance(batch, int):
        return
    for wanted in (ubatch // 2, ubatch * 2, ubatch // 4):
        if _LEAST_UBATCH <= wanted <= min(_MOST_UBATCH, context if isinstance(context, int) else _MOST_UBATCH):
            # Equal ones need no variable of the engine's in Ollama, so they are set together.
            yield {"batch": wanted, "ubatch": wanted}


def _flash_attention(base: Knobs, ground: Ground) -> Iterator[Knobs]:
    if base.get("kv_type_v") not in QUANTIZED_KV_TYPES:
        yield {"flash_attention": "off"}
    yield {"flash_attention": "on"}


def _repack(base: Knobs, ground: Ground) -> Iterator[Knobs]:
    if ground.facts.gpus is not None and not ground.facts.gpus:
        yield {"repack": "off" if base.get("repack") == "on" else "on"}


def _kv_unified(base: Knobs, ground: Ground) -> Iterator[Knobs]:
    slots = base.get("slots")
    if isinstance(slots, int) and slots > 1:
        yield {"kv_unified": "off" if base.get("kv_unified") == "on" else "on"}


def _openmp_wait(base: Knobs, ground: Ground) -> Iterator[Knobs]:
    if ground.openmp:
        yield {"openmp_wait": "passive"}
        yield {"openmp_wait": "active"}


def _load_mode(base: Knobs, ground: Ground) -> Iterator[Knobs]:
    yield from ({"load_mode": mode} for mode in ("none", "mmap"))


def _priority(base: Knobs, ground: Ground) -> Iterator[Knobs]:
    yield {"priority": "high"}


def _kv_type(base: Knobs, ground: Ground) -> Iterator[Knobs]:
    """Both caches in 8 bits, the keys alone, both in 4."""
    yield from ({"kv_type_k": k, "kv_type_v": v} for k, v in (("q8_0", "q8_0"), ("q8_0", "f16"), ("q4_0", "q4_0")))


def _cache_reuse(base: Knobs, ground: Ground) -> Iterator[Knobs]:
    yield {"cache_reuse": 256}


def _short(value: KnobValue) -> str:
    """A file by its name, everything else as it is."""
    text = str(value)
    return text.rsplit("/", 1)[-1][:24] if "/" in text else "engine's own" if value is None else text


_SOURCES: Mapping[str, Callable[[Knobs, Ground], Iterator[Knobs]]] = {
    "threads": _threads,
    "batch_threads": _batch_threads,
    "placement": _placement,
    "speculation": _speculation,
    "slots": _slots,
    "batch": _batch,
    "flash_attention": _flash_attention,
    "repack": _repack,
    "kv_unified": _kv_unified,
    "openmp_wait": _openmp_wait,
    "load_mode": _load_mode,
    "priority": _priority,
    "kv_type": _kv_type,
    "cache_reuse": _cache_reuse,
}
