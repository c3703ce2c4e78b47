"""Send a prompt above the context, and see what becomes of it. This costs an answer, so it is done only when asked.

With ``truncate: false`` the engine refuses and says how many tokens the prompt has (recorded from Ollama v0.33.0-rc2:
status 400, ``request (6011 tokens) exceeds the available context size (512 tokens)``). Without it Ollama cuts the
prompt, answers with status 200, and only ``prompt_eval_count`` tells (llm/llama_server.go, `truncating input prompt`).
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from velollm.errors import VeloError
from velollm.facts import Facts, TruncationFacts

if TYPE_CHECKING:
    from velollm.backends.ollama_http import LoadedModel, OllamaApi

# A wider context would take long to fill; there the model is loaded anew with a small one.
CHEAP_CONTEXT_TOKENS = 8192
_SMALL_CONTEXT_TOKENS = 512
_EXCEEDS = re.compile(r"\((\d{1,9}) tokens\) exceeds the available context size \((\d{1,9}) tokens\)")
# Each of these words is a token at least, in any vocabulary.
_WORDS = ("alpha", "beta", "gamma", "delta", "omega", "kappa", "sigma")


def parse_excess(reason: str) -> tuple[int, int] | None:
    """Tokens of the prompt and of the context, from the engine's refusal; None where it is another one."""
    match = _EXCEEDS.search(reason)
    return (int(match.group(1)), int(match.group(2))) if match else None


def make_prompt(tokens: int) -> str:
    """A text of at least so many tokens; its words come in turns, so that no engine can fold them into fewer."""
    return " ".join(f"{_WORDS[number % len(_WORDS)]} {number}" for number in range(tokens))


def wants_reload(context_tokens: int | None) -> bool:
    """Is the context too wide (or unknown) to be filled as it is?"""
    return context_tokens is None or context_tokens > CHEAP_CONTEXT_TOKENS


@dataclass(frozen=True)
class Probed:
    """The model that a prompt will be sent to, its context where that is known, and what it costs the server."""

    url: str
    model: str
    context_tokens: int | None
    price: str


def choose_probed(facts: Facts) -> Probed:
    """The model in memory, else the first one installed.

    Raises:
        VeloError: no server answers, or it has no model.
    """
    server = facts.server
    if server is None or not server.reachable or server.url is None:
        raise VeloError("no Ollama server answers, so nothing can be sent to it", "start it: ollama serve")
    if server.loaded:
        held = server.loaded[0]
        price = "It is unloaded for a moment, and loaded again." if wants_reload(held.context_tokens) else ""
        return Probed(server.url, held.name, held.context_tokens, price or "It takes one short answer.")
    if not server.installed:
        raise VeloError("Ollama has no model to send a prompt to", "`ollama pull` one first")
    return Probed(server.url, server.installed[0], None, "It is loaded for that, and unloaded again.")


def probe_server(facts: Facts, chosen: Probed) -> Facts:
    """The facts with what became of a prompt above the context. Raises as `probe_truncation`."""
    from velollm.backends.ollama_http import OllamaApi

    assert facts.server is not None
    api = OllamaApi(chosen.url)
    try:
        found = probe_truncation(api, chosen.model, chosen.context_tokens)
    finally:
        api.close()
    server = facts.server.model_copy(update={"truncation": found})
    sources = {**facts.sources, "server.truncation": f"{chosen.url}/api/generate"}
    return facts.model_copy(update={"server": server, "sources": sources})


def probe_truncation(api: OllamaApi, model: str, context_tokens: int | None) -> TruncationFacts | None:
    """What the server does with a prompt above the context of this model; None where the engine does not count.

    With a context that is wide or unknown (`wants_reload`) the model is loaded with a small one, and afterwards
    without it again, with the keep-alive that it had left.

    Raises:
        VeloError: the server does not answer, or the model does not load.
    """
    from velollm.backends.ollama_http import parse_loaded

    reload = wants_reload(context_tokens)
    held = {loaded.name: loaded for loaded in map(parse_loaded, api.loaded())}
    small = {"num_ctx": _SMALL_CONTEXT_TOKENS} if reload else {}
    wanted = _SMALL_CONTEXT_TOKENS if context_tokens is None or reload else context_tokens
    kept = held.get(model) or held.get(f"{model}:latest")
    stay = {} if kept is None else {"keep_alive": kept.keep_alive_left_s()}
    body = {"model": model, "prompt": make_prompt(wanted), "raw": True, "stream": False, **stay}
    body["options"] = {**small, "num_predict": 1, "temperature": 0}
    try:
        found = _ask(api, model, body)
    except VeloError:
        with contextlib.suppress(VeloError):  # the first error is the one to tell
            _restore(api, model, kept, reloaded=reload)
        raise
    _restore(api, model, kept, reloaded=reload)
    return found


def _restore(api: OllamaApi, model: str, kept: LoadedModel | None, *, reloaded: bool) -> None:
    """Leave the server's memory as it was found."""
    if kept is None:
        api.unload(model)
    elif reloaded:
        api.load(model, {}, keep_alive=kept.keep_alive_left_s())


def _ask(api: OllamaApi, model: str, body: dict[str, object]) -> TruncationFacts | None:
    from velollm.backends.ollama_http import OllamaRefusalError

    try:
        api.post("/api/generate", {**body, "truncate": False})
    except OllamaRefusalError as error:
        excess = parse_excess(error.reason)
        if excess is None:
            raise VeloError(f"the long prompt was refused: {error.reason}", error.hint) from error
    else:
        return None
    prompt_tokens, context_tokens = excess
    try:
        reply = api.post("/api/generate", body)
    except OllamaRefusalError as error:
        return TruncationFacts(
            model=model, context_tokens=context_tokens, prompt_tokens=prompt_tokens, status=error.status
        )
    count = reply.get("prompt_eval_count")
    kept = count if isinstance(count, int) and count > 0 else None
    return TruncationFacts(model=model, context_tokens=context_tokens, prompt_tokens=prompt_tokens, kept_tokens=kept)
