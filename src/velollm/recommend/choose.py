"""The choice: the largest model that is fast enough for the profile, in the most bits that allow it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from velollm.errors import VeloError
from velollm.facts import Facts, ModelFacts
from velollm.knobs import Profile, Wish
from velollm.models.catalog import CatalogChoice, catalog_facts, default_format, load_catalog
from velollm.models.catalog_row import CatalogModel
from velollm.models.formats import find_format
from velollm.recommend.history import Calibration
from velollm.recommend.options import Misfit, Option, Speeds, best_decode, weigh

# 16 bits where they fit, else 8, else 4, as far as the profile's speed allows.
LADDER = ("f16", "q8_0", "q4_K_M")
_SHOWN = 5
# Models of so large a share of another's weights count as equally large.
_ALIKE = 0.8
_UNKNOWN_SPEED = "fits, but its speed is unknown"


@dataclass(frozen=True)
class Recommendation:
    """The ``best`` option (None: nothing suits), ``others`` worth a look, best first, and why ``left_out`` are not.

    ``why``: one sentence.
    """

    profile: Profile
    best: Option | None
    others: tuple[Option, ...]
    left_out: tuple[Misfit, ...]
    why: str


def recommend_of_catalog(facts: Facts, wish: Wish, speeds: Speeds, calibration: Calibration) -> Recommendation:
    """The newest of the largest models of the Ollama library that suit machine and profile, and others after it.

    Models of at least four fifths of the largest one's weights count as equally large. One that is made for something
    else than the profile is for (code, pictures) is recommended only where no other suits.
    """
    rows = sorted((row for row in load_catalog() if _could_serve(row, wish.profile)), key=_rank, reverse=True)
    purposes = (None, *wish.profile.purposes)
    found, left_out = _fast_enough([r for r in rows if r.purpose in purposes], facts, wish, speeds, calibration)
    if not found:
        others = [row for row in rows if row.purpose not in purposes]
        found, more = _fast_enough(others, facts, wish, speeds, calibration)
        left_out = sorted((*left_out, *more), key=lambda item: _rank(item[0]), reverse=True)
    misfits = [misfit for _, misfit in left_out]
    if not found:
        return _nothing(wish.profile, misfits)
    alike = [option for option in found if _parameters(option) >= _ALIKE * _parameters(found[0])]
    best = max(alike, key=lambda option: (option.choice.row.released or "") if option.choice else "")
    others_found = [option for option in found if option is not best][: _SHOWN - 1]
    why = _why(best, wish.profile, "newest of the largest models")
    return Recommendation(wish.profile, best, tuple(others_found), tuple(misfits[-_SHOWN:]), why)


def _could_serve(row: CatalogModel, profile: Profile) -> bool:
    return bool(row.ollama) and not set(profile.capabilities) - set(row.capabilities)


def _fast_enough(
    rows: Sequence[CatalogModel], facts: Facts, wish: Wish, speeds: Speeds, calibration: Calibration
) -> tuple[list[Option], list[tuple[CatalogModel, Misfit]]]:
    """The largest of these models that suit, each in its best format, and those that were left out before them."""
    found: list[Option] = []
    left_out: list[tuple[CatalogModel, Misfit]] = []
    for row in rows:
        if len(found) >= _SHOWN and row.parameters < _ALIKE * _parameters(found[0]):
            break
        best, misfit = _best_of_row(row, facts, wish, speeds, calibration)
        if best is not None:
            found.append(best)
        elif misfit is not None:
            left_out.append((row, misfit))
    return found, left_out


def _nothing(profile: Profile, left_out: Sequence[Misfit]) -> Recommendation:
    """No model has the profile's speed: the largest ones whose speed is not known, else those that were left out."""
    unknown = [misfit for misfit in left_out if misfit.reason == _UNKNOWN_SPEED]
    if not unknown:
        return Recommendation(profile, None, (), tuple(left_out[-_SHOWN:]), "no model of the catalog suits it")
    why = "the speed of what fits is unknown; a description can name the memory's, as `bandwidth: 51.2 GB/s`"
    return Recommendation(profile, None, (), tuple(unknown[:_SHOWN]), why)


def _parameters(option: Option) -> int:
    return option.choice.row.parameters if option.choice is not None else 0


def _best_of_row(
    row: CatalogModel, facts: Facts, wish: Wish, speeds: Speeds, calibration: Calibration
) -> tuple[Option | None, Misfit | None]:
    """The first format of the model with the profile's speed; without one, why the smallest format is none."""
    spilled: list[Option] = []
    misfit: Misfit | None = None
    for choice in choices_of(row):
        model = catalog_facts(choice)
        name, floor = choice.ollama_name or choice.name, wish.profile.decode_floor_tokens_per_s
        bound = None if calibration.factors or calibration.measured else best_decode(model, facts, wish, speeds)
        if bound is not None and bound < floor:
            misfit = Misfit(name, choice.format.name, f"at most {bound:.3g} tokens/s, {floor:g} are wanted")
            continue
        item = weigh(name, choice.format.name, choice, model, facts, wish, speeds, calibration)
        if isinstance(item, Misfit):
            misfit = item
            continue
        if item.placement.where != "gpu+cpu" and _first_fast([item], wish.profile) is not None:
            return item, None
        spilled.append(item)
        misfit = _too_slow([item], wish.profile)[0]
    return _first_fast(spilled, wish.profile), misfit


def recommend_format(
    row: CatalogModel, facts: Facts, wish: Wish, speeds: Speeds, calibration: Calibration, *, only: str | None = None
) -> Recommendation:
    """The format of one model that suits machine and profile; where none is fast enough, the fastest that fits.

    ``only``: the one format that was asked for.
    """
    form = None if only is None else find_format(only)
    choices = choices_of(row) if form is None else iter([CatalogChoice(row, form)])
    options, misfits = _weigh_choices(choices, facts, wish, speeds, calibration)
    return _of_formats(options, misfits, wish.profile)


def recommend_format_of(
    variants: Sequence[tuple[str, str, ModelFacts]], facts: Facts, wish: Wish, speeds: Speeds, calibration: Calibration
) -> Recommendation:
    """The same for a model outside the catalog, given as (name, format, facts) with most bits first."""
    weighed = [weigh(name, form, None, model, facts, wish, speeds, calibration) for name, form, model in variants]
    options = [item for item in weighed if isinstance(item, Option)]
    return _of_formats(options, [item for item in weighed if isinstance(item, Misfit)], wish.profile)


def _of_formats(options: list[Option], misfits: list[Misfit], profile: Profile) -> Recommendation:
    if not options:
        return Recommendation(profile, None, (), tuple(misfits), "it does not fit in any format")
    best = _first_fast(options, profile)
    why = "" if best is None else _why(best, profile, "format with most bits")
    if best is None:
        best = max(options, key=lambda option: option.decode.value if option.decode is not None else 0.0)
        floor = f"{profile.decode_floor_tokens_per_s:g} tokens/s"
        why = f"no format reaches the {floor} that the profile {profile.name} wants; this one is the fastest"
    others = tuple(option for option in options if option is not best)
    return Recommendation(profile, best, others, tuple(misfits), why)


def _rank(row: CatalogModel) -> tuple[int, str]:
    return row.parameters, row.released or ""


def choices_of(row: CatalogModel) -> Iterator[CatalogChoice]:
    """The model in the formats of the ladder that can be had: listed by the library, or the one it holds by default."""
    names = list(LADDER)
    if (own := default_format(row)) not in names:
        # A model that was trained in its format (mxfp4) has no better one; an old 4-bit default takes its place.
        names = [own] if own == "mxfp4" else [*names, own]
    for name in names:
        form = find_format(name)
        if form is not None and (name in row.tags or name == own or name in row.file_gb or not row.file_gb):
            yield CatalogChoice(row, form)


def _weigh_choices(
    choices: Iterator[CatalogChoice], facts: Facts, wish: Wish, speeds: Speeds, calibration: Calibration
) -> tuple[list[Option], list[Misfit]]:
    options: list[Option] = []
    misfits: list[Misfit] = []
    for choice in choices:
        name = choice.ollama_name or choice.name
        item = weigh(name, choice.format.name, choice, catalog_facts(choice), facts, wish, speeds, calibration)
        if isinstance(item, Option):
            options.append(item)
        else:
            misfits.append(item)
    return options, misfits


def _first_fast(options: Sequence[Option], profile: Profile) -> Option | None:
    """The first with the profile's speed that stays on one kind of memory, else the one of fewest bits that spills.

    An option of unknown speed counts where it is wholly on GPUs: there is nothing faster on this machine.
    """
    whole = [option for option in options if option.placement.where != "gpu+cpu"]
    spilled = [option for option in options if option.placement.where == "gpu+cpu"]
    for option in (*whole, *reversed(spilled)):
        if option.decode is not None and option.decode.value >= profile.decode_floor_tokens_per_s:
            return option
    return next((option for option in options if option.decode is None and option.placement.where == "gpu"), None)


def _too_slow(options: Sequence[Option], profile: Profile) -> list[Misfit]:
    found = []
    for option in options:
        if option.decode is None:
            reason = _UNKNOWN_SPEED
        else:
            floor = f"{profile.decode_floor_tokens_per_s:g}"
            reason = f"about {option.decode.value:.3g} tokens/s, {floor} are wanted"
        found.append(Misfit(option.name, option.format, reason))
    return found


def _why(option: Option, profile: Profile, what: str) -> str:
    if option.decode is None:
        return f"the {what} wholly on the GPU; its speed is unknown"
    return f"the {what} with at least {profile.decode_floor_tokens_per_s:g} tokens/s, as {profile.name} wants"


def unknown_model(name: str, near: Sequence[str]) -> VeloError:
    """The error for a name that neither the catalog nor the server knows."""
    hint = f"did you mean {', '.join(near)}?" if near else "see `ollama list`, or a name such as llama3.1:8b"
    return VeloError(f"there is no model '{name}' in the catalog or in Ollama", hint)
