"""Installed models that can never load."""

from __future__ import annotations

import re
from collections.abc import Iterator

from velollm.doctor.base import Check, Finding, Mend, ParameterMend, evidence
from velollm.facts import Facts, InstalledModelFacts

_NAME = "model-broken"
_WHY = "`ollama create` takes it without a word, and then every request to the model fails"
# Ollama v0.33.0-rc2 api/types.go:564-596: type of each option; another one fails the request (:1010-1090).
_WHOLE = {"num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "draft_num_predict", "num_keep", "num_predict"}
_WHOLE |= {"seed", "top_k", "repeat_last_n"}
_NUMBERS = {"temperature", "top_p", "min_p", "typical_p", "repeat_penalty", "presence_penalty", "frequency_penalty"}
_SWITCHES = ("use_mmap",)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
_OWN_DRAFTS = ("dflash",)  # llm/llama_server.go:826-835: every other kind is taken for MTP layers


def run(facts: Facts) -> Iterator[Finding]:
    """Finds models with a parameter of the wrong type, and models whose draft cannot be one.

    `/api/create` checks neither: text where a number belongs, or a number in quotes, makes each request fail;
    a plain model as DRAFT is taken for layers of multi-token prediction, which it lacks.
    """
    for model in (facts.server.models if facts.server else None) or ():
        wrong = [(name, value) for name, value in model.parameters if not _fits(name, value)]
        if wrong:
            names = ", ".join(name for name, _ in wrong)
            title = f"{model.name} can never load: {names} is not of the type that it must have"
            seen = tuple(evidence(facts, "server.models", f"PARAMETER {name} {value}") for name, value in wrong)
            fix = f"make {model.name} again, with {names} as a plain value, without quotes"
            yield Finding(_NAME, "warning", title, seen, fix, _WHY, _mend(model, wrong))
        elif _draft_is_wrong(model):
            title = f"{model.name} can never load: its draft is a plain {model.draft_kind} model"
            seen = (evidence(facts, "server.models", f"DRAFT {model.draft}: {model.draft_kind}, no MTP layers"),)
            fix = f"make {model.name} again without DRAFT; for a plain draft: LLAMA_ARG_SPEC_TYPE=draft-simple"
            yield Finding(_NAME, "warning", title, seen, fix, _WHY)


def _mend(model: InstalledModelFacts, wrong: list[tuple[str, str]]) -> Mend | None:
    """The same values without their quotes, where that is all that is wrong; a parameter cannot be taken away."""
    plain = {name: value.strip('"') for name, value in wrong}
    return ParameterMend(model.name, plain) if all(_fits(name, value) for name, value in plain.items()) else None


def _fits(name: str, value: str) -> bool:
    if name in _WHOLE or name in _NUMBERS:
        return bool(_NUMBER.fullmatch(value))
    return value in ("true", "false") if name in _SWITCHES else True


def _draft_is_wrong(model: InstalledModelFacts) -> bool:
    return model.draft_kind is not None and model.draft_kind not in _OWN_DRAFTS and model.draft_has_mtp is False


check = Check(_NAME, "Models that can never load", "warning", True, run)
