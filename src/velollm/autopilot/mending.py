"""What `velollm doctor --fix` does: the mends of findings, written through the journal and made effective."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from velollm import __version__
from velollm.apply import Write, apply_writes, undo_flight
from velollm.autopilot.landing import journal_of
from velollm.autopilot.order import Cockpit
from velollm.autopilot.restart import Patience, restart, unload, wait_until_up
from velollm.backends.ollama import OllamaBackend
from velollm.backends.ollama_http import LoadedModel
from velollm.config import Paths, user_paths
from velollm.doctor.base import EnvironmentMend, Finding, Mend, ParameterMend
from velollm.errors import VeloError
from velollm.facts import Facts
from velollm.journal import FlightMeta
from velollm.targets.activation import Activation, activation_from_address
from velollm.targets.base import JSON
from velollm.targets.environment import EnvironmentPlace, Ground, choose_place
from velollm.targets.ollama_places import OllamaPlaces
from velollm.targets.system import System

Parameters = Mapping[str, str | None]


@dataclass(frozen=True)
class Mending:
    """What was mended. ``flight`` None: nothing had to be written. ``restarted``: the server was started again."""

    findings: tuple[Finding, ...]
    flight: str | None = None
    places: tuple[str, ...] = ()
    restarted: bool = False


@dataclass(frozen=True)
class _Orders:
    """The mends of several findings as one: of two that want different things, the graver finding's holds."""

    variables: Mapping[str, str | None]
    parameters: Mapping[str, Parameters]
    restart: bool

    @property
    def restarts(self) -> bool:
        """Has the server to be started again for it?"""
        return self.restart or bool(self.variables)


def unmendable(facts: Facts, mend: Mend | None, place: EnvironmentPlace | None = None) -> str | None:
    """Why `--fix` may not do this here; None where it may. ``place``: what gives the server its environment."""
    if mend is None:
        return "only you can do it"
    server = facts.server
    if server is None or server.engine != "ollama" or server.remote:
        return "there is no server of this machine to mend"
    if isinstance(mend, ParameterMend):
        return None if server.reachable else "the server does not answer"
    place = place or place_of(facts)
    if isinstance(mend, EnvironmentMend):
        try:
            place.check(mend.variables)
        except VeloError as error:
            return error.message
        if refusal := place.refusal():
            return refusal
    return place.activation.lacking()


def place_of(facts: Facts, paths: Paths | None = None) -> EnvironmentPlace:
    """What gives the server of these facts its environment."""
    pid = facts.server.pid if facts.server else None
    return choose_place(Ground(facts, paths or user_paths(), System(), pid))


def choose_mendable(facts: Facts, findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The findings that `--fix` may mend here."""
    return tuple(finding for finding in findings if unmendable(facts, finding.mend) is None)


def mending_steps(facts: Facts, findings: Iterable[Finding]) -> tuple[str, ...]:
    """What mending these runs on this machine beside writing files of the user's own, to be shown before."""
    orders, place = _combine(finding.mend for finding in findings), place_of(facts)
    steps = [
        line
        for target, _, after in (place.writes(orders.variables) if orders.variables else ())
        for line in target.commands(after)
    ]
    return (*steps, *(place.activation.steps if orders.restarts else ()))


def mend(
    facts: Facts, findings: Sequence[Finding], cockpit: Cockpit, paths: Paths, backend: OllamaBackend | None = None
) -> Mending:
    """Write what these findings need, in one flight, and restart the server where it has to read it.

    Models that were in memory are loaded again: all of them after a restart, else those whose parameters were mended.
    Where one of them does not load any more, or the server does not come up, all is put back.

    Raises:
        VeloError: a place cannot be read or written, or the server is worse than before (then it is as before).
    """
    backend = backend or OllamaBackend()
    orders, place = _combine(finding.mend for finding in findings), place_of(facts, paths)
    held = backend.holding()
    environment = [Write(t, a, b) for t, b, a in (place.writes(orders.variables) if orders.variables else ())]
    writes = [*_model_writes(orders, paths, backend), *environment]
    details: dict[str, JSON] = {
        "schema": 2,
        "kind": "doctor",
        "findings": [f"{found.check}: {found.title}" for found in findings],
    }
    if orders.variables:
        labels = [write.target.label for write in environment]
        details["environment"] = dict(orders.variables)
        details["restart"] = {"activation": place.activation.address(), "places": labels}
    meta = FlightMeta(
        version=__version__,
        backend="ollama",
        model=", ".join(orders.parameters) or "every model",
        summary=", ".join(_summary(orders)) or "restart of the server",
        details=details,
    )
    flight = apply_writes(writes, journal_of(paths), meta) if writes else None
    flight_id = None if flight is None else flight.id
    if orders.restarts:
        _activate(flight_id, held, place.activation, paths, backend, cockpit)
    elif mended := [model for model in held if model.name in orders.parameters]:
        _activate(flight_id, mended, None, paths, backend, cockpit)
    places = () if flight is None else tuple(change.label for change in flight.changes)
    return Mending(tuple(findings), flight_id, places, orders.restarts)


def _combine(mends: Iterable[Mend | None]) -> _Orders:
    variables: dict[str, str | None] = {}
    parameters: dict[str, dict[str, str | None]] = {}
    restart = False
    for wanted in mends:
        if isinstance(wanted, EnvironmentMend):
            variables = {**wanted.variables, **variables}
        elif isinstance(wanted, ParameterMend):
            own = parameters.setdefault(wanted.model, {})
            parameters[wanted.model] = {**{key: _text(value) for key, value in wanted.parameters.items()}, **own}
        elif wanted is not None:
            restart = True
    return _Orders(variables, parameters, restart)


def _text(value: str | int | float | bool | None) -> str | None:
    """A parameter's value as the places write it: JSON's words for truth values."""
    if value is None:
        return None
    return str(value).lower() if isinstance(value, bool) else str(value)


def _summary(orders: _Orders) -> Iterable[str]:
    for name, value in orders.variables.items():
        yield f"without {name}" if value is None else f"{name}={value}"
    for parameters in orders.parameters.values():
        for name, value in parameters.items():
            yield f"without {name}" if value is None else f"{name}={value}"


def _model_writes(orders: _Orders, paths: Paths, backend: OllamaBackend) -> list[Write]:
    writes: list[Write] = []
    for model, parameters in orders.parameters.items():
        places = OllamaPlaces(backend, model, paths.ollama_env, override=True)
        settings = [("model", name, value) for name, value in parameters.items()]
        writes += [Write(target, after, before) for target, before, after in places.writes(settings)]
    return writes


def _activate(
    flight_id: str | None,
    held: Sequence[LoadedModel],
    activation: Activation | None,
    paths: Paths,
    backend: OllamaBackend,
    cockpit: Cockpit,
) -> None:
    """Restart the server, or, with no ``activation``, take the models out of memory; then load them as they are now."""
    try:
        if activation is None:
            unload(held, backend, cockpit)
        elif restart(activation, backend, cockpit) is None:
            raise VeloError("the server was busy, and nobody said yes to a restart", "try again once it is idle")
        _load_again(held, backend)
    except VeloError as error:
        if flight_id is None:
            raise
        undo_flight(journal_of(paths), flight_id)
        if activation is not None:
            # The address is of whoever restarts the server, and not of the process that ran before.
            activation_from_address(activation.address(), System()).run()
        with contextlib.suppress(VeloError):
            wait_until_up(backend, Patience())
            _load_again(held, backend)
        raise VeloError(f"put back, because then {error.message}", error.hint) from error


def _load_again(held: Sequence[LoadedModel], backend: OllamaBackend) -> None:
    backend.forget()
    for model in held:
        backend.api.load(model.name, {}, keep_alive=model.keep_alive_left_s())
