"""Bring written settings to effect on the user's own server, and see whether it still works with them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from velollm.autopilot.order import Cockpit, Restart
from velollm.backends.ollama import OllamaBackend
from velollm.backends.ollama_http import LoadedModel
from velollm.errors import VeloError
from velollm.facts import ServerFacts
from velollm.targets.activation import Activation
from velollm.targets.environment import Changes
from velollm.targets.readback import differences

IDLE_S = 60.0
"""How long a restart waits for running answers to end."""
UP_S = 120.0
_PAUSE_S = 0.5
_TEST_TOKENS = 4
_TEST_S = 120.0


@dataclass(frozen=True)
class Patience:
    """How long to wait for what, in seconds, and how; a test need not."""

    idle_s: float = IDLE_S
    up_s: float = UP_S
    clock: Callable[[], float] = time.monotonic
    pause: Callable[[float], object] = threading.Event().wait


def wait_until_idle(backend: OllamaBackend, cockpit: Cockpit, patience: Patience) -> int | None:
    """Answers that still run once there are none, or the time is up; None where they cannot be seen."""
    until = patience.clock() + patience.idle_s
    while (running := backend.busy()) and (left_s := until - patience.clock()) > 0:
        cockpit(0.96, f"waiting until your server has finished {answers(running)}", left_s)
        patience.pause(min(_PAUSE_S, left_s))
    return running


def answers(count: int) -> str:
    """A number of answers for people."""
    return "1 answer" if count == 1 else f"{count} answers"


def restart(
    activation: Activation, backend: OllamaBackend, cockpit: Cockpit, patience: Patience | None = None
) -> Restart | None:
    """Restart the user's server once it is idle; None where it stays busy and nobody says yes to cutting that off.

    Raises:
        VeloError: the restart failed, or the server does not answer after it.
    """
    patience = patience or Patience()
    answered = backend.version is not None
    running = wait_until_idle(backend, cockpit, patience)
    if running:
        question = f"Your server is still at work on {answers(running)}. Restart it now, and cut that off?"
        if not cockpit.ask(question):
            return None
        running = backend.busy()
    cockpit(0.96, "restarting your server")
    activation.run()
    backend.forget()
    if answered:  # else it listens where we do not look, or was down
        wait_until_up(backend, patience)
    return Restart(activation.steps, running)


def wait_until_up(backend: OllamaBackend, patience: Patience) -> None:
    """Return once the server answers. Raises `VeloError` when it does not within its time."""
    until = patience.clock() + patience.up_s
    while True:
        backend.forget()
        if backend.version is not None:
            return
        left_s = until - patience.clock()
        if left_s <= 0:
            raise VeloError(
                f"the server at {backend.url} did not answer again within {patience.up_s:.0f} s", "look at its log"
            )
        patience.pause(min(_PAUSE_S, left_s))


def unload(
    models: Iterable[LoadedModel], backend: OllamaBackend, cockpit: Cockpit, patience: Patience | None = None
) -> None:
    """Take models out of memory, each once its answers are done.

    Ollama keeps one that is at work, and forgets it by itself afterwards (server/sched.go:1713 of v0.33.0-rc2,
    `expireRunner`); where that takes longer than we wait, the next load waits for it.
    """
    patience, names = patience or Patience(), {model.name for model in models}
    for name in sorted(names):
        backend.api.unload(name)
    until = patience.clock() + patience.idle_s
    while (left := names & {model.name for model in backend.holding()}) and (left_s := until - patience.clock()) > 0:
        cockpit(0.96, f"waiting until {', '.join(sorted(left))} has left the memory", left_s)
        patience.pause(min(_PAUSE_S, left_s))


def find_fault(
    backend: OllamaBackend,
    model: str,
    changes: Changes,
    before: ServerFacts | None,
    probe: Callable[[], ServerFacts | None],
) -> str | None:
    """What is wrong with the user's server as it runs now; None where it works as it should.

    The model must load, answer a short prompt, see the GPUs that the server had, and run with what was written.
    """
    try:
        with backend.user_server(model) as server:
            answer = server.complete("Hello", max_tokens=_TEST_TOKENS, seed=1, deadline_s=_TEST_S, ignore_eos=False)
    except VeloError as error:
        return f"{model} does not load any more: {_reason(model, probe()) or error.message}"
    if answer.finish == "error":
        return f"{model} does not answer any more: {answer.error}"
    now = probe()
    if now is None:
        return None
    if lost := _lost_gpus(before, now, model):
        return lost
    return "; ".join(differences(now, changes)) or None


def _reason(model: str, server: ServerFacts | None) -> str | None:
    """Why a model did not load, in the engine's words: the API only tells an exit status, the log has the rest."""
    failures = server.activity.failures if server is not None and server.activity is not None else ()
    reasons = [f.reason for f in failures if f.reason and f.model.removesuffix(":latest") in (model, f"{model}:latest")]
    # Before names are known, a failure goes by the path of its model's file.
    return next(iter(reasons), None) or next((f.reason for f in reversed(failures) if f.reason), None)


def _lost_gpus(before: ServerFacts | None, now: ServerFacts, model: str) -> str | None:
    had, has = _libraries(before), _libraries(now)
    if had and has is not None and not has:
        return f"the server finds no GPU any more (before: {', '.join(had)})"
    was, runs = _gpu_bytes(before, model), _gpu_bytes(now, model)
    if was and runs == 0:
        return f"{model} is in main memory now, not on the GPU as before"
    return None


def _libraries(server: ServerFacts | None) -> tuple[str, ...] | None:
    """GPU libraries that a server's log names; None where it tells nothing of that."""
    compute = server.activity.compute if server is not None and server.activity is not None else None
    return None if compute is None else tuple(library for library in compute if library != "cpu")


def _gpu_bytes(server: ServerFacts | None, model: str) -> int | None:
    names: Mapping[str, int | None] = {m.name: m.gpu_bytes for m in (server.loaded if server else None) or ()}
    return names.get(model, names.get(f"{model}:latest"))
