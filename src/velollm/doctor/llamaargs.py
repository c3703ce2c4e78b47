"""Names of llama.cpp's variables, as `configs/llama-args.yaml` has them from its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

import yaml

from velollm.config import data_dir

Kind = Literal["number", "switch", "flag", "text"]
_KINDS: tuple[Kind, ...] = ("number", "switch", "flag", "text")
_NO = "LLAMA_ARG_NO_"


@dataclass(frozen=True)
class Names:
    """Variables of one build by name and kind; ``others`` are of other builds, ``removed`` names what to set instead.

    ``pins``: build by version of Ollama.
    """

    build: int
    kinds: Mapping[str, Kind]
    others: frozenset[str]
    removed: Mapping[str, str]
    pins: Mapping[str, int]

    def kind(self, name: str) -> Kind | None:
        """What kind of value a variable takes; None for a name that this build does not read."""
        found = self.kinds.get(name)
        if found is None and name.startswith(_NO):
            found = self.kinds.get(name.replace(_NO, "LLAMA_ARG_", 1))
            return "flag" if found == "switch" else None
        return found

    def near(self, name: str) -> str | None:
        """The known name that an unknown one was most likely meant to be."""
        from difflib import get_close_matches

        found = get_close_matches(name, self.kinds, n=1, cutoff=0.9)
        return found[0] if found else None


@cache
def llama_names() -> Names:
    """The names, read once."""
    data = yaml.safe_load((data_dir("configs") / "llama-args.yaml").read_text(encoding="utf-8"))
    return Names(
        build=data["build"],
        kinds={name: kind for kind in _KINDS for name in data[kind]},
        others=frozenset(data["other_builds"]),
        removed=data["removed"],
        pins=data["pins"],
    )
