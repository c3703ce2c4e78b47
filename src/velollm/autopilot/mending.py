"""What `velollm doctor --fix` does: the mends of findings, written through the journal and made effective."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from velollm import __version__
from velollm.apply import Write, apply_writes, undo_flight
from velollm.autopilot.landing import journal_of
from velollm.backends.ollama import OllamaBackend
from velollm.backends.ollama_http import LoadedModel
from velollm.backends.ollama_run import reach_runner, read_runner_environ
from velollm.config import Paths
from velollm.doctor.base import EnvironmentMend, Finding, Mend, ParameterMend
from velollm.errors import VeloError
from velollm.facts import Facts
from velollm.journal import FlightMeta
from velollm.targets.base import State
from velollm.targets.envfile import parse_env, render_env
from velollm.targets.file import FileTarget
from velollm.targets.ollama_places import OllamaPlaces

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


def unmendable(facts: Facts, mend: Mend | None) -> str | None:
    """Why `--fix` may not do this here; None where it may."""
    if mend is None:
        return "only you can do it"
    server = facts.server
    if server is None or server.engine != "ollama" or server.remote:
        return "there is no server of this machine to mend"
    if isinstance(mend, ParameterMend):
        return None if server.reachable else "the server does not answer"
    if server.managed != "velollm run":
        return "the server is not run by `velollm run`"
    return None


def choose_mendable(facts: Facts, findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The findings that `--fix` may mend here."""
    return tuple(finding for finding in findings if unmendable(facts, finding.mend) is None)


def mend(findings: Sequence[Finding], paths: Paths, backend: OllamaBackend | None = None) -> Mending:
    """Write what these findings need, in one flight, and restart the server where it has to read it.

    Models that were in memory are loaded again. Where one of them does not load any more, or the server does not come
    up, all is put back.

    Raises:
        VeloError: a place cannot be read or written, or the server is worse than before (then it is as before).
    """
    backend = backend or OllamaBackend()
    orders = _combine(finding.mend for finding in findings)
    held = backend.holding()
    writes = _writes(orders, paths, backend)
    meta = FlightMeta(
        version=__version__,
        backend="ollama",
        model=", ".join(orders.parameters) or "every model",
        summary=", ".join(_summary(orders)) or "restart of the server",
        details={"schema": 2, "kind": "doctor", "findings": [f"{found.check}: {found.title}" for found in findings]},
    )
    flight = apply_writes(writes, journal_of(paths), meta) if writes else None
    flight_id = None if flight is None else flight.id
    restart = orders.restart or bool(orders.variables)
    if restart:
        _activate(flight_id, held, paths, backend)
    places = () if flight is None else tuple(change.label for change in flight.changes)
    return Mending(tuple(findings), flight_id, places, restart)


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


def _writes(orders: _Orders, paths: Paths, backend: OllamaBackend) -> list[Write]:
    writes: list[Write] = []
    for model, parameters in orders.parameters.items():
        places = OllamaPlaces(backend, model, paths.ollama_env, override=True)
        settings = [("model", name, value) for name, value in parameters.items()]
        writes += [Write(target, after, before) for target, before, after in places.writes(settings)]
    if orders.variables:
        target = FileTarget(paths.ollama_env)
        before = target.read()
        inherited = read_runner_environ(paths.runner_state)
        text = render_env(before.text, _file_changes(orders.variables, parse_env(before.text), inherited))
        writes.append(Write(target, State.of_text(text), before))
    return writes


def _file_changes(
    variables: Mapping[str, str | None], file: Mapping[str, str], inherited: Mapping[str, str] | None
) -> dict[str, str | None]:
    """What the environment file has to say; a variable that the server would inherit has to be set to nothing there."""
    changes: dict[str, str | None] = {}
    for name, value in variables.items():
        inherits = inherited is None or name in inherited
        if value is not None:
            changes[name] = value
        elif inherits:
            changes[name] = ""
        elif name in file:
            changes[name] = None
    return changes


def _activate(flight_id: str | None, held: Sequence[LoadedModel], paths: Paths, backend: OllamaBackend) -> None:
    runner = reach_runner(paths.runner_state)
    if runner is None:
        raise VeloError("`velollm run` does not answer any more", "start it again: velollm run -- ollama serve")
    try:
        runner.restart()
        _load_again(held, backend)
    except VeloError as error:
        if flight_id is None:
            raise
        undo_flight(journal_of(paths), flight_id)
        runner.restart()
        with contextlib.suppress(VeloError):
            _load_again(held, backend)
        raise VeloError(f"put back, because then {error.message}", error.hint) from error


def _load_again(held: Sequence[LoadedModel], backend: OllamaBackend) -> None:
    backend.forget()
    for model in held:
        backend.api.load(model.name, {}, keep_alive=model.keep_alive_left_s())
