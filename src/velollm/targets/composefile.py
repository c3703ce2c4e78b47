"""Compose files: the environment of one service, read and changed in place; comments and every other byte stay.

Shapes: Compose specification, ``services.NAME.environment`` as a mapping or a list, ``$`` doubled where it is meant
(Interpolation). Only the text of single entries is replaced, and the result is read again: where it does not mean what
it should, nothing is changed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import yaml

from velollm.errors import VeloError

HEADER = "# Written by VeloLLM: `velollm undo` takes it back.\n"
_HINT = "add the variables to the service by hand"


class _Loader(yaml.SafeLoader):
    """Reads Compose's own tags (``!reset``, ``!override``) as what they stand before, with their name."""


def _tagged(loader: yaml.SafeLoader, tag: str, node: yaml.Node) -> object:
    if isinstance(node, yaml.MappingNode):
        return (tag, loader.construct_mapping(node, deep=True))
    if isinstance(node, yaml.SequenceNode):
        return (tag, loader.construct_sequence(node, deep=True))
    return (tag, loader.construct_scalar(node))  # type: ignore[arg-type]


_Loader.add_multi_constructor("!", _tagged)


def parse_environment(text: str, service: str) -> dict[str, str]:
    """What a Compose file sets for a service; a variable without a value comes from the shell and is left out.

    Raises:
        VeloError: it is no Compose file.
    """
    node = _find(_compose(text), "services", service, "environment")
    found: dict[str, str] = {}
    for name, value in _entries(node):
        if value is not None:
            found[name] = value.replace("$$", "$")
    return found


def parse_services(text: str) -> tuple[str, ...]:
    """Names of a Compose file's services. Raises `VeloError` where it is no Compose file."""
    node = _find(_compose(text), "services")
    pairs = node.value if isinstance(node, yaml.MappingNode) else ()
    return tuple(key.value for key, _ in pairs if isinstance(key, yaml.ScalarNode))


def render_environment(text: str, service: str, changes: Mapping[str, str | None]) -> str:
    """The text with these variables of a service set, or, where None, taken away.

    Raises:
        VeloError: it is no Compose file, or is written in a way that cannot be changed safely.
    """
    for name, value in changes.items():
        _check(name, value)
    result = text
    for name, value in changes.items():
        result = _with_one(result, service, name, value)
    rest, environment = _split(text, service)
    gone = {name for name, value in changes.items() if value is None}
    wanted = {name: value.replace("$", "$$") for name, value in changes.items() if value is not None}
    expected = {**{name: value for name, value in environment.items() if name not in gone}, **wanted}
    if _split(result, service) != (rest, expected):
        raise VeloError("the Compose file cannot be changed safely", _HINT)
    return result


def _check(name: str, value: str | None) -> None:
    if not name or "=" in name or any(ord(c) < 32 or ord(c) == 127 for c in name + (value or "")):
        raise VeloError(f"the value of {name} has a line break or control character in it", "give a plain value")


def _compose(text: str) -> yaml.Node | None:
    try:
        node: yaml.Node | None = yaml.compose(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark is not None else ""
        raise VeloError(
            f"the Compose file is no YAML: {where}{getattr(error, 'problem', None) or error}", _HINT
        ) from error
    if node is not None and not isinstance(node, yaml.MappingNode):
        raise VeloError("the Compose file has no `services:`", _HINT)
    return node


def _find(node: yaml.Node | None, *path: str) -> yaml.Node | None:
    for name in path:
        pair = _pair(node, name)
        if pair is None:
            return None
        node = pair[1]
    return node


def _pair(node: yaml.Node | None, name: str) -> tuple[yaml.ScalarNode, yaml.Node] | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    return next(((k, v) for k, v in node.value if isinstance(k, yaml.ScalarNode) and k.value == name), None)


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def _entries(node: yaml.Node | None) -> list[tuple[str, str | None]]:
    """(name, value as typed) of an environment in either form."""
    found: list[tuple[str, str | None]] = []
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and isinstance(value, yaml.ScalarNode):
                found.append((key.value, None if _is_null(value) else value.value))
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            if isinstance(item, yaml.ScalarNode):
                name, equals, value = item.value.partition("=")
                found.append((name, value if equals else None))
    return found


def _meaning(text: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader that keeps unknown tags as text
    except (yaml.YAMLError, RecursionError, ValueError, TypeError):
        return object()


def _split(text: str, service: str) -> tuple[Any, dict[str, Any]]:
    """What a Compose file means without one service's environment, and that environment."""
    body = copy.deepcopy(_meaning(text))
    if body is None:
        return {}, {}
    services = body.get("services") if isinstance(body, dict) else None
    mine = services.get(service) if isinstance(services, dict) else None
    environment = mine.pop("environment", None) if isinstance(mine, dict) else None
    if isinstance(services, dict) and not services.get(service):
        services.pop(service, None)
    if isinstance(body, dict) and not services:
        body.pop("services", None)
    if isinstance(environment, list):
        pairs = (str(item).partition("=") for item in environment)
        return body, {name: value if equals else None for name, equals, value in pairs}
    return body, dict(environment) if isinstance(environment, dict) else {}


def _with_one(text: str, service: str, name: str, value: str | None) -> str:
    """The text with one variable set or taken away."""
    root = _compose(text)
    pair = _pair(_find(root, "services", service), "environment")
    environment = pair[1] if pair is not None else None
    if pair is None or environment is None or _is_null(environment):
        return text if value is None else _with_environment(text, root, service, f"{name}: {_quote(value)}")
    if isinstance(environment, yaml.MappingNode):
        return _in_mapping(text, pair[0], environment, name, value)
    if isinstance(environment, yaml.SequenceNode):
        return _in_list(text, pair[0], environment, name, value)
    raise VeloError("the Compose file cannot be changed safely", _HINT)


def _quote(value: str) -> str:
    """A value in double quotes, with Compose's dollars doubled."""
    return _quote_text(value.replace("$", "$$"))


def _quote_text(text: str) -> str:
    return str(yaml.safe_dump(text, default_style='"', width=math.inf)).rstrip("\n")


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _line_start(text: str, at: int) -> int:
    return text.rfind("\n", 0, at) + 1


def _line_end(text: str, at: int) -> int:
    """Where the line of a position ends, its line end included."""
    end = text.find("\n", at)
    return len(text) if end < 0 else end + 1


def _replaced(text: str, node: yaml.Node, new: str) -> str:
    """The text with another value in a scalar's place."""
    start, end = node.start_mark.index, node.end_mark.index
    if isinstance(node, yaml.ScalarNode) and node.style in ("|", ">"):
        new += _newline(text)
    if start == end and text[start - 1 : start] == ":" and not new.startswith(("\r", "\n")):
        new = f" {new}"
    return text[:start] + new + text[end:]


def _insert_before(text: str, node: yaml.Node, lines: list[str]) -> str:
    """The text with lines before the one that a node begins, indented as it is."""
    start = _line_start(text, node.start_mark.index)
    indent = text[start : node.start_mark.index].replace("\ufeff", "")
    if indent.strip(" "):
        raise VeloError("the Compose file cannot be changed safely", _HINT)
    if text.startswith("\ufeff") and start == 0:
        start = 1
    return text[:start] + "".join(f"{indent}{line}{_newline(text)}" for line in lines) + text[start:]


def _insert_after(text: str, first: yaml.Node, last: tuple[yaml.Node, yaml.Node], line: str, dash: str) -> str:
    """The text with a line after that of ``last``, indented as ``first`` is; where the last has several, before all."""
    key, value = last
    # An alias has the place of what it stands for.
    if not key.start_mark.line == value.start_mark.line == value.end_mark.line:
        return _insert_before_entry(text, first, line, dash)
    start = _line_start(text, first.start_mark.index)
    indent = " " * (first.start_mark.column - len(dash))
    if text[start : first.start_mark.index].replace("\ufeff", "") != indent + dash:
        raise VeloError("the Compose file cannot be changed safely", _HINT)
    end = _line_end(text, value.end_mark.index)
    joint = "" if text[:end].endswith("\n") else _newline(text)
    tail = "" if joint else _newline(text)
    return f"{text[:end]}{joint}{indent}{dash}{line}{tail}{text[end:]}"


def _insert_before_entry(text: str, first: yaml.Node, line: str, dash: str) -> str:
    start = _line_start(text, first.start_mark.index)
    indent = text[start : first.start_mark.index]
    if indent.strip(" ") != dash.strip(" "):
        raise VeloError("the Compose file cannot be changed safely", _HINT)
    return f"{text[:start]}{indent}{line}{_newline(text)}{text[start:]}"


def _with_environment(text: str, root: yaml.Node | None, service: str, entry: str) -> str:
    """The text with a first variable for a service that has none."""
    services = _find(root, "services")
    mine = _find(services, service)
    environment = _pair(mine, "environment")
    if environment is not None:
        indent = "  " + " " * environment[0].start_mark.column
        return _replaced(text, environment[1], f"{_newline(text)}{indent}{entry}")
    if isinstance(mine, yaml.MappingNode) and mine.value and not mine.flow_style:
        return _insert_before(text, mine.value[0][0], ["environment:", f"  {entry}"])
    if isinstance(services, yaml.MappingNode) and services.value and not services.flow_style and mine is None:
        return _insert_before(text, services.value[0][0], [f"{service}:", "  environment:", f"    {entry}"])
    if services is None and (root is None or (isinstance(root, yaml.MappingNode) and not root.flow_style)):
        newline = _newline(text)
        joint = "" if not text or text.endswith("\n") else newline
        lines = ["services:", f"  {service}:", "    environment:", f"      {entry}"]
        return text + joint + "".join(f"{line}{newline}" for line in lines)
    pair = _pair(services, service)
    if pair is not None and _is_null(pair[1]):
        indent = " " * pair[0].start_mark.column
        newline = _newline(text)
        return _replaced(text, pair[1], f"{newline}{indent}  environment:{newline}{indent}    {entry}")
    raise VeloError("the Compose file cannot be changed safely", _HINT)


def _in_mapping(text: str, head: yaml.Node, node: yaml.MappingNode, name: str, value: str | None) -> str:
    pair = _pair(node, name)
    if pair is None:
        return (
            text if value is None else _added(text, node, [(k, v) for k, v in node.value], f"{name}: {_quote(value)}")
        )
    if value is not None:
        return text if _same(pair[1], value) else _replaced(text, pair[1], _quote(value))
    others = [(k, v) for k, v in node.value if k is not pair[0]]
    return _without(text, head, node, pair, others, "{}")


def _in_list(text: str, head: yaml.Node, node: yaml.SequenceNode, name: str, value: str | None) -> str:
    if not all(isinstance(item, yaml.ScalarNode) for item in node.value):
        raise VeloError("the Compose file cannot be changed safely", _HINT)
    items = [(item, item) for item in node.value]
    mine = next((p for p in items if p[0].value.partition("=")[0] == name), None)
    wanted = None if value is None else f"{name}={value.replace('$', '$$')}"
    entry = None if wanted is None else _quote_text(wanted)
    if mine is None:
        return text if entry is None else _added(text, node, items, entry, "- ")
    if entry is not None:
        return text if mine[0].value == wanted else _replaced(text, mine[0], entry)
    return _without(text, head, node, mine, [p for p in items if p is not mine], "[]")


def _same(node: yaml.Node, value: str) -> bool:
    """Does a scalar already say this, as a text?"""
    return (
        isinstance(node, yaml.ScalarNode)
        and node.tag == "tag:yaml.org,2002:str"
        and node.value == value.replace("$", "$$")
    )


_Pairs = list[tuple[yaml.Node, yaml.Node]]


def _added(text: str, node: yaml.CollectionNode, entries: _Pairs, entry: str, dash: str = "") -> str:
    if node.flow_style:
        at = node.start_mark.index + 1
        return f"{text[:at]}{entry}{', ' if entries else ''}{text[at:]}"
    return _insert_after(text, entries[0][0], entries[-1], entry, dash)


def _without(
    text: str, name: yaml.Node, node: yaml.CollectionNode, gone: tuple[yaml.Node, yaml.Node], others: _Pairs, empty: str
) -> str:
    if node.flow_style:
        kept = ", ".join(text[k.start_mark.index : v.end_mark.index] for k, v in others)
        inner = f"{empty[0]}{kept}{empty[1]}"
        return text[: node.start_mark.index] + inner + text[node.end_mark.index :]
    start = _line_start(text, gone[0].start_mark.index)
    end = gone[1].end_mark.index
    # A block scalar ends where the next line begins.
    end = end if text[end - 1 : end] == "\n" else _line_end(text, end)
    if others:
        return text[:start] + text[end:]
    at = text.index(":", name.end_mark.index) + 1
    return f"{text[:at]} {empty}{text[at:start]}{text[end:]}"
