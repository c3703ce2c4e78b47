"""From an order to a course: backend, model, facts, what is set now, and the plan."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from velollm.autopilot.made import stand_in, stand_in_facts
from velollm.autopilot.order import Cockpit, Course, Order
from velollm.backends.base import Backend, ModelRef, iter_backends
from velollm.backends.ollama import OllamaBackend
from velollm.backends.ollama_store import PROJECTOR_LAYER, find_ollama_blob
from velollm.backends.openai import OpenAiBackend
from velollm.config import Paths, ensure_dir
from velollm.errors import UsageError, VeloError
from velollm.estimate.find import with_projector
from velollm.estimate.kept import with_kept
from velollm.facts import Facts, ModelFacts
from velollm.journal import Journal
from velollm.knobs import Knobs
from velollm.models.families import find_family
from velollm.models.gguf import model_facts
from velollm.models.header import read_gguf
from velollm.models.shown import parse_shown
from velollm.models.synthetic import SHAPE_1B, ensure_model, estimate_file_bytes, made_model_facts
from velollm.plan import Plan, load_profile, make_plan
from velollm.targets.base import JSON
from velollm.targets.environment import Ground
from velollm.targets.ollama_places import OllamaPlaces
from velollm.targets.places import Places, engine_places
from velollm.units import render_bytes

OWN_SETTING = "left as you have it; --override lets the plan change it"


def choose_backend(name: str, cockpit: Cockpit, *, wants_model: bool, url: str | None = None) -> Backend:
    """The backend of that name, or for ``auto`` Ollama, then the embedded engine, then `llama-server`.

    ``auto`` passes over an Ollama without any model where none was named (``wants_model`` off). With a ``url`` it
    means OpenAI's interface where the address ends in `/v1`, else Ollama.

    Raises:
        VeloError: none can be used.
    """
    backends = {backend.name: backend for backend in iter_backends()}
    if url is not None and name == "auto":
        name = "openai" if url.rstrip("/").endswith("/v1") else "ollama"
    if name != "auto":
        if name not in backends:
            raise UsageError(f"there is no backend '{name}'", f"backends: auto, {', '.join(backends)}")
        chosen = backends[name] if url is None else backends[name].at(url)
        if lacking := chosen.missing():
            raise _unusable(lacking)
        return chosen
    reasons: list[str] = []
    for candidate in ("ollama", "embedded", "llamacpp"):
        backend = backends[candidate]
        lacking = backend.missing()
        if lacking is None and isinstance(backend, OllamaBackend) and not wants_model and not backend.usual_model():
            lacking = "Ollama has no model yet"
        if lacking is None:
            if reasons:
                cockpit.note(f"{reasons[0].partition(':')[0]}: flying on the {candidate} engine.")
            return backend
        reasons.append(lacking)
    raise _unusable(reasons[1])


def _unusable(lacking: str) -> VeloError:
    message, _, hint = lacking.partition(": ")
    return VeloError(message, hint or "choose another --backend")


def choose_model(
    name: str | None,
    backend: Backend,
    paths: Paths,
    cockpit: Cockpit,
    *,
    make: bool,
    probe: Callable[[], Facts] | None = None,
) -> ModelRef:
    """The model of that name. Without one: Ollama's loaded or newest model, elsewhere the one made on the spot.

    The made one has a real shape and random weights and stays in the cache; with ``make`` off it is only named. With
    a ``probe``, which tells what the machine holds, one is also made in the place of a known model that is not here,
    but never for Ollama, which would keep it.
    """
    if name is not None:
        return _find_model(name, backend, paths, cockpit, make=make, probe=probe)
    if isinstance(backend, OpenAiBackend):
        return _only_model(backend, cockpit)
    if isinstance(backend, OllamaBackend):
        usual = backend.usual_model()
        if usual is None:
            raise VeloError("Ollama has no model yet", "`ollama pull` one, or add --backend embedded")
        cockpit.note(f"No model named: taking {usual}.")
        return backend.find_model(usual)
    directory = paths.cache / "models"
    size = render_bytes(estimate_file_bytes(SHAPE_1B))
    if not make:
        return ModelRef(SHAPE_1B.name, None)
    ensure_dir(directory)

    def progress(done: int, total: int) -> None:
        cockpit(done / total, f"making a model to measure with ({size})")

    path = ensure_model(SHAPE_1B, directory, progress=progress)
    cockpit.note(f"Measuring with a made model of random weights, shaped like a 1.1B one: {path} ({size}).")
    return ModelRef(SHAPE_1B.name, path)


def _find_model(
    name: str, backend: Backend, paths: Paths, cockpit: Cockpit, *, make: bool, probe: Callable[[], Facts] | None
) -> ModelRef:
    try:
        return backend.find_model(name)
    except VeloError as error:
        if probe is None or isinstance(backend, OpenAiBackend) or find_family(name) is None:
            raise
        if isinstance(backend, OllamaBackend):
            hint = f"`ollama pull {name}`, or see how it would run on a made model: add --backend embedded"
            raise VeloError(error.message, hint) from error
        found = stand_in(name, paths, cockpit, make=make, probe=probe)
        if found is None:
            raise
        return found


def _only_model(backend: OpenAiBackend, cockpit: Cockpit) -> ModelRef:
    names = backend.list_models()
    if len(names) != 1:
        raise UsageError(
            f"the server at {backend.url} has {len(names)} models: say which", f"models: {', '.join(names) or 'none'}"
        )
    cockpit.note(f"No model named: taking {names[0]}.")
    return ModelRef(names[0], None)


def places_for(backend: Backend, model: ModelRef, order: Order, facts: Facts) -> Places:
    """Where the backend keeps its settings for this model."""
    if isinstance(backend, OllamaBackend):
        pid = backend.process.pid if backend.process else None
        return OllamaPlaces(
            backend,
            model.name,
            order.paths.ollama_env,
            beside=order.beside,
            # What a person has pinned to the engine's default is meant so, whatever the original says.
            override=order.override or bool(order.pins),
            ground=Ground(facts, order.paths, order.system, pid),
            recorded=recorded_environment(Journal(order.paths.journal)),
        )
    return engine_places(order.paths, str(model.path or model.name))


def recorded_environment(journal: Journal) -> dict[str, str]:
    """The variables that flights have set and nobody has undone, with their values."""
    found: dict[str, JSON] = {}
    for flight in journal.read_flights():
        environment = flight.meta.details.get("environment")
        if flight.complete and flight.open and isinstance(environment, Mapping):
            found.update(environment)
    return {name: value for name, value in found.items() if isinstance(value, str)}


def find_model_facts(model: ModelRef, backend: Backend) -> ModelFacts | None:
    """What the model's header says, else what its server says of it; None where neither can be had."""
    if model.path is not None:
        facts = model_facts(read_gguf(model.path), model.name)
        projector = _projector_of(model.name, model.path) if isinstance(backend, OllamaBackend) else None
        return facts if projector is None else with_projector(facts, projector)
    if isinstance(backend, OllamaBackend):
        return parse_shown(backend.api.show(model.name, verbose=True), model.name, backend.file_bytes(model.name))
    return made_model_facts(SHAPE_1B) if model.name == SHAPE_1B.name else stand_in_facts(model.name)


def _projector_of(name: str, blob: Path) -> Path | None:
    """The file that turns pictures into embeddings for a model of Ollama: a layer of its own, which takes room too."""
    found = find_ollama_blob(name, blob.parent.parent, PROJECTOR_LAYER)
    return found if found is not None and os.access(found, os.R_OK) else None


def chart(order: Order, cockpit: Cockpit, *, make: bool = True) -> Course:
    """Look at the machine and the model, and work out the plan; changes nothing."""
    profile = load_profile(order.profile)
    backend = choose_backend(order.backend, cockpit, wants_model=order.model is not None, url=order.url)
    model = choose_model(order.model, backend, order.paths, cockpit, make=make, probe=order.probe)
    cockpit(0.0, "looking at the machine")
    found = find_model_facts(model, backend)
    if found is not None:
        found = with_kept(order.paths.data, found, model.path, backend.name)
    facts = order.probe().model_copy(update={"model": found})
    places = places_for(backend, model, order, facts)
    settings = places.read_settings()
    current = places.knobs_of(settings, backend.default_knobs(facts))
    kept = {} if order.override else _kept(places, order, backend)
    plan = make_plan(facts, backend, profile, {**kept, **order.pins}, current, current_settings=settings, kept=kept)
    return Course(order, backend, model, facts, _with_kept_reasons(plan, kept, order), current, places, kept)


def _kept(places: Places, order: Order, backend: Backend) -> Knobs:
    own = places.own_knobs()
    return {name: value for name, value in own.items() if name in backend.knobs and name not in order.pins}


def _with_kept_reasons(plan: Plan, kept: Knobs, order: Order) -> Plan:
    choices = tuple(
        replace(choice, reason=OWN_SETTING) if choice.name in kept and choice.name not in order.pins else choice
        for choice in plan.choices
    )
    return replace(plan, choices=choices)
