from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from velollm.errors import VeloError
from velollm.targets.composefile import HEADER, parse_environment, render_environment

CHANGES = {"A": "1", "B": "x y", "GONE": None}


def check_schema(text: str) -> None:
    """What the published Compose schema asks of the parts that we write: `services` and `list_or_dict`."""
    body = yaml.safe_load(text)
    assert isinstance(body, dict)
    assert isinstance(body["services"], dict)
    for name, service in body["services"].items():
        assert isinstance(name, str)
        assert service is None or isinstance(service, dict)
        environment = (service or {}).get("environment", {})
        if isinstance(environment, list):
            assert all(isinstance(item, str) for item in environment)
            assert len(set(environment)) == len(environment)
        else:
            assert isinstance(environment, dict)
            assert all(isinstance(key, str) and key for key in environment)
            assert all(v is None or isinstance(v, (str, int, float, bool)) for v in environment.values())


def environment_of(text: str, service: str = "ollama") -> dict[str, Any]:
    found = yaml.safe_load(text)["services"][service]["environment"]
    return dict(item.split("=", 1) for item in found) if isinstance(found, list) else found


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", 'services:\n  ollama:\n    environment:\n      A: "1"\n      B: "x y"\n'),
        (HEADER, f'{HEADER}services:\n  ollama:\n    environment:\n      A: "1"\n      B: "x y"\n'),
        (
            "# mine\nservices:\n  ollama:\n    environment:\n      A: 0  # zero\n      # about C\n      C: 2\n# end\n",
            (
                '# mine\nservices:\n  ollama:\n    environment:\n      A: "1"  # zero\n      # about C\n      C: 2\n'
                '      B: "x y"\n# end\n'
            ),
        ),
        (
            "services:\n  ollama:\n    environment:\n    - A=0\n    - GONE\n    - C=2 # two\n    image: x\n",
            'services:\n  ollama:\n    environment:\n    - "A=1"\n    - C=2 # two\n    - "B=x y"\n    image: x\n',
        ),
        (
            "services:\r\n  ollama:\r\n    environment:\r\n      GONE: 1\r\n      A: '1'\r\n",
            "services:\r\n  ollama:\r\n    environment:\r\n      A: '1'\r\n      B: \"x y\"\r\n",
        ),
        (
            "services:\n  ollama:\n    image: x\n  web: {}\n",
            'services:\n  ollama:\n    environment:\n      A: "1"\n      B: "x y"\n    image: x\n  web: {}\n',
        ),
        (
            "services:\n  web:\n    image: x",
            'services:\n  ollama:\n    environment:\n      A: "1"\n      B: "x y"\n  web:\n    image: x',
        ),
        ("services:\n  ollama:\n", 'services:\n  ollama:\n    environment:\n      A: "1"\n      B: "x y"\n'),
        (
            "services:\n  ollama:\n    environment:\n",
            'services:\n  ollama:\n    environment:\n      A: "1"\n      B: "x y"\n',
        ),
        (
            "services:\n  ollama:\n    environment: {A: 0, GONE: 1}\n",
            'services:\n  ollama:\n    environment: {B: "x y", A: "1"}\n',
        ),
        (
            "services:\n  ollama:\n    environment: [C=2]\n",
            'services:\n  ollama:\n    environment: ["B=x y", "A=1", C=2]\n',
        ),
        (
            "services:\n  ollama:\n    environment:\n      C: |\n        two\n        lines\n    image: x\n",
            (
                'services:\n  ollama:\n    environment:\n      B: "x y"\n      A: "1"\n      C: |\n        two\n'
                "        lines\n    image: x\n"
            ),
        ),
        (
            "services:\n  ollama:\n    environment:\n      A:\n      C: 2",
            'services:\n  ollama:\n    environment:\n      A: "1"\n      C: 2\n      B: "x y"',
        ),
        (
            "volumes:\n  v: {}\n",
            'volumes:\n  v: {}\nservices:\n  ollama:\n    environment:\n      A: "1"\n      B: "x y"\n',
        ),
        (
            "x-env: &e {C: 2}\nservices:\n  ollama:\n    ports: !override [80]\n    environment:\n      <<: *e\n",
            (
                "x-env: &e {C: 2}\nservices:\n  ollama:\n    ports: !override [80]\n    environment:\n"
                '      B: "x y"\n      A: "1"\n      <<: *e\n'
            ),
        ),
    ],
)
def test_single_entries_are_changed_and_the_rest_stays(before: str, after: str) -> None:
    result = render_environment(before, "ollama", CHANGES)
    assert result == after
    assert {"A": "1", "B": "x y"}.items() <= parse_environment(result, "ollama").items()
    if "!override" not in result:
        check_schema(result)
    assert render_environment(result, "ollama", CHANGES) == result


def test_the_last_variable_leaves_an_empty_environment() -> None:
    block = "services:\n  ollama:\n    environment:  # ours\n      GONE: 1\n    image: x\n"
    result = render_environment(block, "ollama", {"GONE": None})
    assert yaml.safe_load(result) == {"services": {"ollama": {"environment": {}, "image": "x"}}}
    check_schema(result)


def test_nothing_to_take_away_is_nothing_to_write() -> None:
    assert render_environment("# x\n", "ollama", {"GONE": None}) == "# x\n"


def test_dollars_are_not_for_compose() -> None:
    text = render_environment("", "ollama", {"A": "$HOME ${X}"})
    assert environment_of(text) == {"A": "$$HOME $${X}"}
    assert parse_environment(text, "ollama") == {"A": "$HOME ${X}"}


@pytest.mark.parametrize(
    "text",
    [
        "services: [\n",
        "- a\n",
        "text\n",
        "services:\n  ollama:\n    environment: text\n",
        "services: {web: {}}\n",
        "a: 1\n---\nb: 2\n",
        "x: &e {A: 0}\nservices:\n  ollama:\n    environment: *e\n",
        "x: &v 0\nservices:\n  ollama:\n    environment:\n      A: *v\n",
        "services:\n  ollama:\n    environment:\n      - {A: 0}\n",
        "\tservices: 1\n",
    ],
)
def test_what_cannot_be_changed_safely_is_refused(text: str) -> None:
    with pytest.raises(VeloError, match="Compose file") as caught:
        render_environment(text, "ollama", {"A": "1"})
    assert caught.value.hint


NAMES = st.sampled_from(["A", "B", "OLLAMA_KEEP_ALIVE", "LONG_NAME"])
PLAIN = st.sampled_from(["1", "x", "'a b'", '"q"', "true", "", "5m # why", "|\n        two\n        lines"])
VALUES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=10) | st.sampled_from(
    ["$x", "yes", "1", ": #"]
)
COMMENTS = st.sampled_from(["", "# note\n", "      # deeper\n", "\n"])


@st.composite
def files(draw: st.DrawFn) -> str:
    """Compose files as people write them: both forms, comments anywhere, other services around."""
    entries = draw(st.dictionaries(NAMES, PLAIN, min_size=1, max_size=3))
    as_list = draw(st.booleans())
    lines: list[str] = []
    for name, value in entries.items():
        if as_list:
            value = "" if value.startswith("|") else value.strip("'\"")
            lines.append(f"      - {name}={value}\n" if value else f"      - {name}\n")
        else:
            lines.append(f"      {name}: {value}".rstrip(" ") + "\n")
        lines.append(draw(COMMENTS))
    before = draw(st.sampled_from(["", "  web:\n    image: w\n"]))
    inside = draw(st.sampled_from(["", "    image: o # pin\n"]))
    after = draw(st.sampled_from(["", "    ports: ['80:80']\n", "  db: {image: d}\n", "volumes:\n  v:\n"]))
    text = f"{draw(COMMENTS)}services:\n{before}  ollama:\n{inside}    environment:\n{''.join(lines)}{after}"
    text = text if draw(st.booleans()) else text.rstrip("\n")
    return text if draw(st.booleans()) else text.replace("\n", "\r\n")


@given(files(), st.dictionaries(NAMES, VALUES | st.none(), max_size=3))
def test_any_file_means_the_same_but_for_the_changes(text: str, changes: dict[str, str | None]) -> None:
    before = parse_environment(text, "ollama")
    result = render_environment(text, "ollama", changes)
    check_schema(result)
    kept = {name: value for name, value in before.items() if name not in changes}
    wanted = {name: value for name, value in changes.items() if value is not None}
    assert parse_environment(result, "ollama") == {**kept, **wanted}
    assert ("# pin" in result) == ("# pin" in text)
    assert ("\r\n" in result) == ("\r\n" in text) or "\n" not in text
    assert render_environment(result, "ollama", changes) == result


@given(files(), st.dictionaries(NAMES, VALUES, min_size=1, max_size=3))
def test_comments_and_other_lines_stay(text: str, changes: dict[str, str]) -> None:
    result = render_environment(text, "ollama", changes)
    for line in text.split("\n"):
        if "#" in line and not any(f"{name}:" in line or f"{name}=" in line for name in changes):
            assert line.rstrip("\r") in [other.rstrip("\r") for other in result.split("\n")]


@given(st.text(max_size=120))
def test_no_text_breaks_it(text: str) -> None:
    try:
        result = render_environment(text, "ollama", {"A": "1"})
    except VeloError:
        return
    assert parse_environment(result, "ollama")["A"] == "1"
