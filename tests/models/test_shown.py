from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.fake_ollama import recorded
from tests.shared import shared_dir
from velollm.facts import ModelFacts
from velollm.models.gguf import model_facts
from velollm.models.header import read_gguf
from velollm.models.shown import parse_shown

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def shown() -> dict[str, Any]:
    body = recorded("show-verbose")["body"]
    assert isinstance(body, dict)
    return body


def test_what_is_shown_is_what_the_file_says() -> None:
    path = shared_dir("models") / "tiny-python-5m-f16.gguf"
    by_file = model_facts(read_gguf(path), "tiny")
    by_server = parse_shown(shown(), "tiny", by_file.file_bytes)
    assert by_server is not None
    assert by_server.path is None
    # The server's word about the chat template is of its own.
    alike = {"path": None, "has_chat_template": by_file.has_chat_template}
    assert without_places(by_server.model_copy(update=alike)) == without_places(by_file.model_copy(update=alike))
    assert by_server.output_part is not None
    assert by_server.output_part.spans == {}


def without_places(facts: ModelFacts) -> dict[str, Any]:
    """All facts but where in the file the tensors lie, which no server tells."""
    found = facts.model_dump()
    single = [found[name] for name in ("input_part", "output_part")]
    for part in (
        *single,
        *found["layer_parts"],
        *found["feed_forward_parts"],
        *found["expert_parts"],
        *found["mtp_parts"],
    ):
        del part["spans"]
    return found


def test_without_lists_the_vocabulary_is_still_known() -> None:
    brief = parse_shown(recorded("show")["body"], "tiny")
    assert brief is not None
    assert (brief.vocab, brief.layers, brief.file_bytes) == (2048, 6, None)


def test_a_model_of_another_format_has_no_header() -> None:
    assert parse_shown({"model_info": {}, "tensors": None}, "m") is None
    assert parse_shown({}, "m") is None


@given(st.dictionaries(st.sampled_from(["general.architecture", "llama.block_count", "llama.x"]), JSON), JSON)
def test_no_answer_raises_anything_else(info: dict[str, Any], tensors: Any) -> None:
    if isinstance(info.get("llama.block_count"), int) and info["llama.block_count"] > 512:
        info["llama.block_count"] = 4
    parse_shown({"model_info": info, "tensors": tensors}, "m")
