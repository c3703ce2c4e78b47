"""Our own ``engine.yaml``: which knobs `velollm run` turns for which model."""

from __future__ import annotations

from collections.abc import Mapping

from velollm.errors import VeloError
from velollm.knobs import KnobValue

_HEADER = "# Written by VeloLLM: settings for each model, used by `velollm run`. Comments are not kept.\n"
_HINT = "take it back with `velollm undo`, or mend or remove that file"


def parse_engine_settings(text: str) -> dict[str, dict[str, KnobValue]]:
    """Knobs of each model in an ``engine.yaml``; an empty text has none.

    Raises:
        VeloError: it is no YAML, or not of the shape ``models: {name: {knob: value}}``.
    """
    models = _load(text).get("models")
    if models is None:
        return {}
    if not isinstance(models, dict):
        raise _damaged("`models` is not a list of names with settings")
    return {_model_name(name): _parse_knobs(name, knobs) for name, knobs in models.items()}


def render_engine_settings(text: str, model: str, changes: Mapping[str, KnobValue]) -> str:
    """The file with these knobs of one model set, or removed where None; everything else means what it meant.

    A model without knobs left is taken out. A text that says all of this already comes back as it was.

    Raises:
        VeloError: the text is damaged.
    """
    import yaml

    models = parse_engine_settings(text)
    before = models.get(model, {})
    merged: dict[str, KnobValue] = {**before, **changes}
    after: dict[str, KnobValue] = {name: value for name, value in merged.items() if value is not None}
    if after == before:
        return text
    models[model] = after
    kept = {name: knobs for name, knobs in models.items() if knobs}
    body = {**_load(text), "models": kept}
    return _HEADER + yaml.safe_dump(body, sort_keys=False, width=120)


def _load(text: str) -> dict[object, object]:
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise _damaged(_first_line(error)) from error
    except (RecursionError, ValueError) as error:  # deep nesting; an impossible date
        raise _damaged(_first_line(error)) from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _damaged("it has no `models:`")
    return value


def _parse_knobs(model: object, knobs: object) -> dict[str, KnobValue]:
    if knobs is None:
        return {}
    if not isinstance(knobs, dict):
        raise _damaged(f"the settings of '{model}' are not of the form `knob: value`")
    found: dict[str, KnobValue] = {}
    for name, value in knobs.items():
        if not isinstance(name, str) or not isinstance(value, (bool, int, float, str, type(None))):
            raise _damaged(f"'{name}' of '{model}' is not of the form `knob: value`")
        found[name] = value
    return found


def _model_name(name: object) -> str:
    if not isinstance(name, str):
        raise _damaged(f"the model name {name} needs quotes around it")
    return name


def _first_line(error: Exception) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is not None:
        return f"line {mark.line + 1}: {problem or 'no YAML'}"
    return (str(error).splitlines() or ["no YAML"])[0]


def _damaged(why: str) -> VeloError:
    return VeloError(f"the engine settings (engine.yaml) are damaged: {why}", _HINT)
