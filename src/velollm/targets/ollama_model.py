"""A model of an Ollama server as a place for settings: its parameters, changed through the server's own interface.

The original is kept under a second name (`OllamaCopyTarget`), so that the first name can be given back exactly the
manifest that it had. Calls and their effects: Ollama v0.33.0-rc2, server/routes.go (`CopyHandler`, `DeleteHandler`),
server/create.go.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from velollm.backends.ollama_http import OllamaApi, OllamaRefusalError
from velollm.errors import VeloError
from velollm.targets.base import Address, State, Target, canonical_json

BEFORE_SUFFIX = "-before-velollm"
BESIDE_SUFFIX = "-velollm"
_SWAP_SUFFIX = "-swap-velollm"
Parameters = list[list[str]]
NO_VALUE = "<nil>"
"""What `/api/show` prints for a parameter without a value (server/routes.go:1506, `%#v` of nil).

`/api/create` cannot take a parameter from a model: it lays the new ones over those of the model that it starts from
(server/create.go:1377-1382). But one that is set to null is skipped when the options are put together
(api/types.go:1013), so that the engine's default holds; only that it is named still counts (server/routes.go:181,193).
"""


def with_suffix(name: str, suffix: str) -> str:
    """A model's name with something before its tag: ``llama3:8b`` becomes ``llama3-velollm:8b``."""
    head, slash, last = name.rpartition("/")
    model, colon, tag = last.partition(":")
    return f"{head}{slash}{model}{suffix}{colon}{tag}"


def full_tag(name: str) -> str:
    """A name as `/api/tags` lists it: with its tag."""
    return name if ":" in name.rsplit("/", 1)[-1] else f"{name}:latest"


def read_digest(api: OllamaApi, name: str) -> str | None:
    """Digest of an installed model's manifest; None where it is not installed."""
    wanted = full_tag(name)
    return next((str(model.get("digest")) for model in api.tags() if model.get("name") == wanted), None)


def parse_parameters(text: str) -> Parameters:
    """Sorted [name, value] pairs of the ``parameters`` text of `/api/show`; a name may come more than once (stop)."""
    pairs = (line.strip().split(None, 1) for line in text.splitlines())
    return sorted([pair[0], pair[1]] for pair in pairs if len(pair) == 2)


def parameters_of_text(text: str) -> dict[str, object]:
    """The same text as `/api/create` takes it: typed values, ``stop`` as a list; without those that have no value."""
    found: dict[str, object] = {}
    for name, value in parse_parameters(text):
        typed = _typed(value)
        if name == "stop":
            earlier = found.setdefault(name, [])
            assert isinstance(earlier, list)
            earlier.append(typed)
        elif typed is not None:
            found[name] = typed
    return found


def merge_parameters(parameters: Parameters, changes: Mapping[str, str]) -> Parameters:
    """Parameters as `/api/create` leaves them: a new value replaces every old one of that name."""
    kept = [pair for pair in parameters if pair[0] not in changes]
    return sorted([*kept, *([name, value] for name, value in changes.items())])


class OllamaCopyTarget(Target):
    """A second name for a model, with the same digest. Its state is that digest, or absent.

    It is the only whole copy of the original while the first name holds something else, so it is not removed then.
    """

    kind = "ollama-copy"

    def __init__(self, url: str, name: str, source: str) -> None:
        self._url, self._name, self._source = url, name, source

    @property
    def label(self) -> str:
        return f"Ollama model {self._name}"

    def address(self) -> Address:
        return {"kind": self.kind, "url": self._url, "name": self._name, "source": self._source}

    @classmethod
    def from_address(cls, address: Address) -> OllamaCopyTarget:
        return cls(str(address["url"]), str(address["name"]), str(address["source"]))

    def read(self) -> State:
        api = OllamaApi(self._url)
        try:
            digest = read_digest(api, self._name)
        finally:
            api.close()
        return State(None if digest is None else canonical_json({"digest": digest}))

    def write(self, state: State) -> None:
        api = OllamaApi(self._url)
        try:
            if state.content is None:
                self._remove(api)
                return
            wanted = json.loads(state.content)["digest"]
            if read_digest(api, self._source) != wanted:
                raise VeloError(f"{self._source} is no longer what it was", "plan again: run the same command again")
            api.post("/api/copy", {"source": self._source, "destination": self._name})
        finally:
            api.close()

    def _remove(self, api: OllamaApi) -> None:
        if read_digest(api, self._name) not in (None, read_digest(api, self._source)):
            raise VeloError(
                f"{self._name}, the original, is kept, because {self._source} is another model now",
                f"once you do not need it: ollama rm {self._name}",
            )
        _delete(api, self._name)


class OllamaModelTarget(Target):
    """A model's name, which holds either the untouched ``base`` or that base with other parameters.

    State: absent, ``{"original": digest}``, or ``{"base": digest, "parameters": [[name, value], …]}``.
    """

    kind = "ollama-model"

    def __init__(self, url: str, name: str, base: str) -> None:
        self._url, self._name, self._base = url, name, base

    @property
    def label(self) -> str:
        return f"Ollama model {self._name}"

    def address(self) -> Address:
        return {"kind": self.kind, "url": self._url, "name": self._name, "base": self._base}

    @classmethod
    def from_address(cls, address: Address) -> OllamaModelTarget:
        return cls(str(address["url"]), str(address["name"]), str(address["base"]))

    def read(self) -> State:
        api = OllamaApi(self._url)
        try:
            return self._read(api)
        finally:
            api.close()

    def _read(self, api: OllamaApi) -> State:
        digest, base = read_digest(api, self._name), read_digest(api, self._base)
        if digest is None:
            return State(None)
        if base is None or base == digest:
            return State(canonical_json({"original": digest}))
        parameters = parse_parameters(str(api.show(self._name).get("parameters", "")))
        return State(canonical_json({"base": base, "parameters": parameters}))

    def write(self, state: State) -> None:
        api = OllamaApi(self._url)
        try:
            if state.content is None:
                _delete(api, self._name)
                return
            wanted = json.loads(state.content)
            if "original" in wanted:
                self._restore(api, wanted["original"])
            else:
                self._derive(api, wanted["base"], wanted["parameters"])
        finally:
            api.close()

    def _restore(self, api: OllamaApi, digest: str) -> None:
        """Give the name its first manifest back, and let the server remove what only ours needed.

        Layers go when the last name that needs them is deleted, so ours moves aside first. The name itself always
        stands for a whole model, wherever this is interrupted.
        """
        if read_digest(api, self._base) != digest:
            raise VeloError(
                f"{self._base}, the copy of the original, is gone or changed",
                f"pull or create {self._name} again; then nothing is left to undo",
            )
        swap = with_suffix(self._name, _SWAP_SUFFIX)
        api.post("/api/copy", {"source": self._name, "destination": swap})
        api.post("/api/copy", {"source": self._base, "destination": self._name})
        _delete(api, swap)

    def _derive(self, api: OllamaApi, base: str, parameters: Parameters) -> None:
        if read_digest(api, self._base) != base:
            raise VeloError(f"{self._base} is no longer what it was", "plan again: run the same command again")
        own = parse_parameters(str(api.show(self._base).get("parameters", "")))
        changes = {name: _typed(value) for name, value in parameters if [name, value] not in own}
        body = {"model": self._name, "from": self._base, "parameters": changes, "stream": False}
        api.post("/api/create", body)

    def tidy(self, before: State) -> None:
        api = OllamaApi(self._url)
        try:
            _delete(api, with_suffix(self._name, _SWAP_SUFFIX))
        except VeloError:
            # Best effort beside a write that has already been reported.
            return
        finally:
            api.close()


target = (OllamaCopyTarget, OllamaModelTarget)


def _delete(api: OllamaApi, name: str) -> None:
    try:
        api.delete("/api/delete", {"model": name})
    except OllamaRefusalError as error:
        if error.status != 404:
            raise


def _typed(text: str) -> object:
    """A parameter's text as JSON: `/api/create` stores the type that it is given."""
    if text == NO_VALUE:
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text.strip('"')
