"""A plan for a machine that is not this one: nothing can be tried or applied there, and nothing is set there yet."""

from __future__ import annotations

import contextlib
from pathlib import Path

from velollm.autopilot.chart import find_model_facts, places_for
from velollm.autopilot.order import Course, Order
from velollm.backends.base import Backend, ModelRef, iter_backends
from velollm.backends.gguf_files import find_gguf
from velollm.backends.ollama import OllamaBackend
from velollm.errors import UsageError, VeloError
from velollm.facts import ModelFacts
from velollm.models.accelerators import fill_from_table
from velollm.models.catalog import find_catalog_model, near_names
from velollm.plan import load_profile, make_plan
from velollm.probe.hardware import read_hardware
from velollm.rules.room import as_idle

_EXAMPLE = "for example: velollm optimize llama3.1:8b --dry-run --hardware machine.yaml"


def chart_elsewhere(order: Order) -> Course:
    """The plan for the machine that ``order.hardware`` tells of, with current versions of its engine.

    The model is a file or an Ollama model that is here, or one of the catalog, which need not be downloaded.

    Raises:
        UsageError: no model was named, or there is no such backend.
        VeloError: the description cannot be understood, or the model is unknown.
    """
    assert order.hardware is not None
    if order.model is None:
        raise UsageError("a plan for another machine needs the name of a model", _EXAMPLE)
    profile, backend = load_profile(order.profile), _backend(order.backend)
    facts = as_idle(fill_from_table(read_hardware(order.hardware)))
    model, model_facts = _find_model(order.model, backend)
    facts = facts.model_copy(update={"model": model_facts})
    plan = make_plan(facts, backend, profile, order.pins)
    return Course(order, backend, model, facts, plan, None, places_for(backend, model, order, facts))


def _backend(name: str) -> Backend:
    """The backend of that name; ``auto`` is Ollama, for which most machines are."""
    backends = {backend.name: backend for backend in iter_backends()}
    backend = backends.get("ollama" if name == "auto" else name)
    if backend is None:
        raise UsageError(f"there is no backend '{name}'", f"backends: auto, {', '.join(backends)}")
    if isinstance(backend, OllamaBackend):
        # The server that may run here is not the one of that machine.
        backend.version = None
    return backend


def _find_model(name: str, backend: Backend) -> tuple[ModelRef, ModelFacts | None]:
    """A model that is here, else one of the catalog."""
    with contextlib.suppress(VeloError):
        found = find_gguf(name)
        return found, find_model_facts(found, backend)
    if Path(name).suffix == ".gguf" or (known := find_catalog_model(name)) is None:
        raise VeloError(
            f"there is no model '{name}'",
            f"the path of a GGUF file, or a name of the catalog such as {', '.join(near_names(name)) or 'llama3.1:8b'}",
        )
    return ModelRef(name, None), known
