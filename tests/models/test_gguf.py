from __future__ import annotations

from pathlib import Path

import pytest

from tests.models.files import header_of
from tests.shared import shared_dir
from velollm.errors import VeloError
from velollm.facts import MlaFacts, ModelFacts, SsmFacts
from velollm.models.gguf import model_facts, read_gguf
from velollm.models.writer import NewTensor, WriteValue


def facts_of(path: Path, architecture: str, keys: dict[str, WriteValue], **more: WriteValue) -> ModelFacts:
    """Facts of a file with these keys, all under the architecture's prefix."""
    metadata: dict[str, WriteValue] = {"general.architecture": architecture}
    metadata |= {f"{architecture}.{name}": value for name, value in keys.items()}
    metadata |= {name.replace("__", "."): value for name, value in more.items()}
    return model_facts(header_of(path, metadata), "model")


DENSE: dict[str, WriteValue] = {
    "block_count": 6,
    "embedding_length": 64,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "feed_forward_length": 128,
}


@pytest.mark.parametrize(
    ("name", "parameters", "layers", "heads", "kv_heads", "key_length"),
    [("tiny-python-5m-f16", 5_475_584, 6, 8, 4, 32), ("tiny-python-draft-f16", 596_448, 2, 4, 2, 24)],
)
def test_real_models(name: str, parameters: int, layers: int, heads: int, kv_heads: int, key_length: int) -> None:
    path = shared_dir("models") / f"{name}.gguf"
    facts = model_facts(read_gguf(path), name)
    assert facts.parameters == parameters
    assert (facts.layers, facts.heads, facts.kv_heads) == (layers, (heads,) * layers, (kv_heads,) * layers)
    assert (facts.key_length, facts.value_length, facts.vocab) == (key_length, key_length, 2048)
    assert (facts.architecture, facts.file_type, facts.context_train) == ("llama", "F16", 2048)
    assert facts.has_chat_template is True
    assert facts.file_bytes == path.stat().st_size
    assert facts.tensor_bytes == sum(facts.bytes_by_type.values())
    assert facts.sliding_window is None
    assert not any(facts.sliding_layers or ())


def test_what_a_file_does_not_tell_is_none(tmp_path: Path) -> None:
    facts = model_facts(header_of(tmp_path, {}), "bare")
    for name in ("architecture", "layers", "heads", "kv_heads", "key_length", "vocab", "context_train", "mla", "ssm"):
        assert getattr(facts, name) is None, name
    assert facts.has_chat_template is False


def test_kv_heads_default_to_heads_and_size_to_embedding_by_heads(tmp_path: Path) -> None:
    keys = {name: value for name, value in DENSE.items() if name != "attention.head_count_kv"}
    facts = facts_of(tmp_path, "llama", keys)
    assert facts.kv_heads == facts.heads == (4,) * 6
    assert facts.key_length == facts.value_length == 16


def test_a_list_of_kv_heads_that_is_too_short_is_unknown(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, "llama", DENSE | {"attention.head_count_kv": [2, 2]})
    assert facts.kv_heads is None
    assert facts.heads == (4,) * 6


def test_named_head_sizes_count(tmp_path: Path) -> None:
    keys: dict[str, WriteValue] = {
        "attention.key_length": 32,
        "attention.value_length": 24,
        "attention.key_length_swa": 8,
        "attention.value_length_swa": 4,
    }
    facts = facts_of(tmp_path, "gemma4", DENSE | keys)
    assert (facts.key_length, facts.value_length, facts.key_length_swa, facts.value_length_swa) == (32, 24, 8, 4)


def test_values_of_a_wrong_kind_count_as_absent(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, "llama", DENSE | {"context_length": -1.5, "expert_count": True})
    assert facts.context_train is None
    assert facts.experts is None


def test_vocabulary_from_tokens_then_key_then_embedding(tmp_path: Path) -> None:
    embedding = NewTensor("token_embd.weight", (64, 99), "f16")
    base: dict[str, WriteValue] = {"general.architecture": "llama"}
    assert model_facts(header_of(tmp_path, base, [embedding]), "m").vocab == 99
    base |= {"llama.vocab_size": 55}
    assert model_facts(header_of(tmp_path, base, [embedding]), "m").vocab == 55
    base |= {"tokenizer.ggml.tokens": ["a", "b", "c"]}
    assert model_facts(header_of(tmp_path, base, [embedding]), "m").vocab == 3


def test_bytes_by_type_and_parameters(tmp_path: Path) -> None:
    tensors = [NewTensor("a", (256, 3), "q4_k"), NewTensor("b", (32, 2), "q8_0"), NewTensor("c", (10,), "f32")]
    facts = model_facts(header_of(tmp_path, {}, tensors), "m")
    assert facts.parameters == 768 + 64 + 10
    assert facts.bytes_by_type == {"q4_k": 3 * 144, "q8_0": 68, "f32": 40}
    assert facts.tensor_bytes == 3 * 144 + 68 + 40


def test_an_unknown_number_format_leaves_the_sum_unknown(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    header_of(tmp_path, {}, [NewTensor("aaaa", (32,), "q8_0")])
    data = bytearray(path.read_bytes())
    data[data.index(b"aaaa") + 4 + 4 + 8] = 250
    path.write_bytes(bytes(data))
    header = read_gguf(path)
    assert (header.tensors[0].type_name, header.tensors[0].size_bytes) == ("type 250", None)
    facts = model_facts(header, "m")
    assert (facts.tensor_bytes, facts.parameters) == (None, 32)


def test_sums_of_one_part_of_a_split_model_are_unknown(tmp_path: Path) -> None:
    facts = model_facts(header_of(tmp_path, {"split.count": 3}, [NewTensor("a", (32,), "q8_0")]), "m")
    assert facts.parameters is None
    assert facts.tensor_bytes is None


def test_mtp_layers_are_not_layers(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, "glm4moe", DENSE | {"block_count": 7, "nextn_predict_layers": 1})
    assert (facts.layers, facts.mtp_layers) == (6, 1)
    assert facts.heads is not None
    assert len(facts.heads) == 6


def test_experts(tmp_path: Path) -> None:
    keys: dict[str, WriteValue] = {"expert_count": 128, "expert_used_count": 8, "expert_feed_forward_length": 768}
    facts = facts_of(tmp_path, "qwen3moe", DENSE | keys)
    assert (facts.experts, facts.experts_used, facts.expert_feed_forward_length) == (128, 8, 768)


MLA: dict[str, WriteValue] = {
    "attention.head_count_kv": 1,
    "attention.kv_lora_rank": 512,
    "attention.q_lora_rank": 1536,
    "attention.key_length": 576,
    "attention.value_length": 512,
    "rope.dimension_count": 64,
}


def test_mla_in_the_compressed_form(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, "deepseek2", DENSE | MLA | {"attention.key_length_mla": 192})
    assert facts.mla == MlaFacts(kv_lora_rank=512, rope_dims=64, q_lora_rank=1536, key_length=192)


def test_mla_in_the_old_form_keeps_full_k_and_v(tmp_path: Path) -> None:
    assert facts_of(tmp_path, "deepseek2", DENSE | MLA).mla is None


@pytest.mark.parametrize(
    ("architecture", "keys", "window", "sliding"),
    [
        ("gemma2", {}, 4096, "101010"),
        ("gemma2", {"attention.sliding_window": 2048}, 2048, "101010"),
        ("gemma3", {"attention.sliding_window": 512}, 512, "111110"),
        ("gemma3", {}, None, "000000"),
        ("gemma3n", {"attention.sliding_window": 512}, 512, "111101"),
        ("gpt-oss", {"attention.sliding_window": 128}, 128, "101010"),
        ("cohere2", {"attention.sliding_window": 4096}, 4096, "111011"),
        ("cohere2", {"attention.sliding_window": 4096, "attention.sliding_window_pattern": 3}, 4096, "110110"),
        ("llama4", {}, 8192, "111011"),
        ("llama4", {"attention.sliding_window": 0}, 0, "000000"),
        ("exaone4", {"attention.sliding_window": 4096}, 4096, "000000"),
        ("smallthinker", {"attention.sliding_window": 4096}, 4096, "011101"),
        ("gemma4", {"attention.sliding_window": 512, "attention.sliding_window_pattern": [1, 1, 0]}, 512, "110110"),
        ("llama", {"attention.sliding_window": 4096}, 4096, "000000"),
        ("phi3", {"attention.sliding_window": 2048}, 2048, "000000"),
    ],
)
def test_sliding_layers(
    architecture: str, keys: dict[str, WriteValue], window: int | None, sliding: str, tmp_path: Path
) -> None:
    facts = facts_of(tmp_path, architecture, DENSE | keys)
    assert facts.sliding_window == window
    assert facts.sliding_layers == tuple(letter == "1" for letter in sliding)


SSM: dict[str, WriteValue] = {
    "ssm.conv_kernel": 4,
    "ssm.inner_size": 128,
    "ssm.state_size": 16,
    "ssm.time_step_rank": 8,
    "ssm.group_count": 1,
}


@pytest.mark.parametrize(
    ("architecture", "keys", "recurrent", "kv_heads"),
    [
        ("llama", {}, "000000", (2,) * 6),
        ("mamba2", SSM | {"attention.head_count": 0}, "111111", (0,) * 6),
        ("granitehybrid", SSM | {"attention.head_count_kv": [0, 0, 2, 0, 0, 2]}, "110110", (0, 0, 2, 0, 0, 2)),
        ("qwen35", SSM, "111011", (0, 0, 0, 2, 0, 0)),
        ("qwen3next", SSM | {"full_attention_interval": 3}, "110110", (0, 0, 2, 0, 0, 2)),
        ("qwen35", SSM | {"attention.recurrent_layers": [1, 0, 1, 0, 1, 0]}, "101010", (0, 2, 0, 2, 0, 2)),
        ("falcon-h1", SSM, "111111", (2,) * 6),
        (
            "nemotron_h",
            SSM | {"attention.head_count_kv": [0, 0, 2, 0, 0, 2], "feed_forward_length": [0, 9, 0, 0, 9, 0]},
            "100100",
            (0, 0, 2, 0, 0, 2),
        ),
    ],
)
def test_recurrent_layers(
    architecture: str, keys: dict[str, WriteValue], recurrent: str, kv_heads: tuple[int, ...], tmp_path: Path
) -> None:
    facts = facts_of(tmp_path, architecture, DENSE | keys)
    assert facts.recurrent_layers == tuple(letter == "1" for letter in recurrent)
    assert facts.kv_heads == kv_heads


def test_ssm_sizes(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, "mamba2", DENSE | SSM)
    assert facts.ssm == SsmFacts(conv_kernel=4, inner_size=128, state_size=16, time_step_rank=8, group_count=1)


def test_a_short_convolution_is_a_state_of_the_embeddings_width(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, "lfm2", DENSE | {"shortconv.l_cache": 3, "attention.head_count_kv": [0, 2, 0, 2, 0, 2]})
    assert facts.ssm == SsmFacts(conv_kernel=3, inner_size=64, state_size=0, group_count=0)
    assert facts.recurrent_layers == (True, False) * 3


def test_shared_kv_layers(tmp_path: Path) -> None:
    assert facts_of(tmp_path, "gemma4", DENSE | {"attention.shared_kv_layers": 2}).kv_shared_layers == 2
    assert facts_of(tmp_path, "gemma3n", DENSE | {"block_count": 30}).kv_shared_layers == 10
    assert facts_of(tmp_path, "llama", DENSE).kv_shared_layers == 0


def test_absurd_layers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VeloError, match="4000000000 layers"):
        facts_of(tmp_path, "llama", DENSE | {"block_count": 4_000_000_000})
