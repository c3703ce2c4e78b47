"""A model's tokenizer as its GGUF header gives it, and whether a draft's fits it: the engine's own rule.

Rule: `common_speculative_are_compatible`, common/speculative.cpp:66-130 of llama.cpp b10488, over what
`llama_vocab::impl::load` (src/llama-vocab.cpp:1924-2613) makes of the header.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from velollm.errors import VeloError
from velollm.models.header import GgufHeader, Readable, parse_gguf, read_gguf

Mismatch = Literal["kind", "bos", "eos", "size", "token"]
TOKENS = "tokenizer.ggml.tokens"

# SPEC_VOCAB_MAX_SIZE_DIFFERENCE and SPEC_VOCAB_CHECK_START_TOKEN_ID, common/speculative.cpp:29-30.
MAX_SIZE_DIFFERENCE = 128
FIRST_COMPARED = 5

# Kind, default bos and eos, and whether they are added: src/llama-vocab.cpp:1953-2088 and 2387-2409.
_KINDS: dict[str, tuple[str, int | None, int | None, bool, bool]] = {
    "llama": ("SPM", 1, 2, True, False),
    "bert": ("WPM", 101, None, True, False),
    "gpt2": ("BPE", 11, 11, False, False),
    "hybriddna": ("BPE", 11, 11, False, False),
    "whitespace": ("BPE", 11, 11, False, False),
    "gemma4": ("BPE", None, None, False, False),
    "t5": ("UGM", None, 1, False, True),
    "rwkv": ("RWKV", None, None, False, False),
    "plamo2": ("PLaMo2", 1, 2, False, False),
}
# Pre-tokenizers of BPE that add bos by themselves (:2150-2298), have none (:2256), or have it forced (:2610).
_LLAMA3 = {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"}
_ADDS_BOS = frozenset({*_LLAMA3, "tekken", "chameleon"})
_NO_BOS = frozenset({"glm4", "chatglm-bpe"})
_FORCED_BOS = frozenset({"gemma4", "granite-embed-multi-311m"})


@dataclass(frozen=True)
class Tokenizer:
    """What the engine compares. ``bos`` and ``eos`` None: there is none. ``tokens`` are C strings, as the engine's."""

    kind: str
    add_bos: bool
    bos: int | None
    add_eos: bool
    eos: int | None
    tokens: tuple[bytes, ...]


@dataclass(frozen=True)
class Compatibility:
    """Does a draft's vocabulary fit? Where not, ``differs`` names what, and ``reason`` says it in words.

    ``token``: the first token that differs, where it is the text of one.
    """

    fits: bool
    reason: str
    differs: Mismatch | None = None
    token: int | None = None


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a GGUF file.

    Raises:
        VeloError: the file cannot be read, is damaged, or has no tokenizer that the engine knows.
    """
    return tokenizer_of(read_gguf(path, texts=frozenset({TOKENS})))


def parse_with_tokens(file: Readable, path: Path) -> GgufHeader:
    """The header of an open file, with its tokens. Raises as `parse_gguf`."""
    return parse_gguf(file, path, texts=frozenset({TOKENS}))


def tokenizer_of(header: GgufHeader) -> Tokenizer:
    """The tokenizer of a header that was read with its tokens.

    Raises:
        VeloError: the header has no tokenizer, or one of a kind that llama.cpp b10488 does not know.
    """
    data = header.metadata
    model, found = data.get("tokenizer.ggml.model"), _KINDS.get(str(data.get("tokenizer.ggml.model")))
    if found is None or TOKENS not in header.texts:
        named = f"the tokenizer {model!r}, which llama.cpp does not know" if found is None and model else "no tokenizer"
        raise VeloError(f"{header.path} has {named}", "give a model that generates text")
    kind, bos, eos, add_bos, add_eos = found
    pre = "gemma4" if model == "gemma4" else str(data.get("tokenizer.ggml.pre", ""))
    if kind == "BPE":
        add_bos = add_bos or pre in _ADDS_BOS
        bos = None if pre in _NO_BOS else bos
    add_bos = _flag(header, "add_bos_token", add_bos) or (kind == "BPE" and pre in _FORCED_BOS)
    texts = header.texts[TOKENS]
    # An empty token gets a name (:2455-2459); what lies behind a zero byte is not compared.
    tokens = tuple(text.partition(b"\0")[0] if text else b"[EMPTY_%d]" % place for place, text in enumerate(texts))
    return Tokenizer(
        kind=kind,
        add_bos=add_bos,
        bos=_id(header, "bos_token_id", bos, len(tokens)),
        add_eos=_flag(header, "add_eos_token", add_eos),
        eos=_id(header, "eos_token_id", eos, len(tokens)),
        tokens=tokens,
    )


def _flag(header: GgufHeader, key: str, otherwise: bool) -> bool:
    value = header.metadata.get(f"tokenizer.ggml.{key}")
    return value if isinstance(value, bool) else otherwise


def _id(header: GgufHeader, key: str, otherwise: int | None, size: int) -> int | None:
    """A special token: as the header has it, else the kind's own; one outside the vocabulary counts as not given."""
    value = header.metadata.get(f"tokenizer.ggml.{key}")
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < size:
        return value
    return otherwise if otherwise is not None and otherwise < size else None


def compare_tokenizers(main: Tokenizer, draft: Tokenizer) -> Compatibility:
    """Would the engine let this draft propose tokens to this main model?"""
    if main.kind != draft.kind:
        return Compatibility(False, f"the draft's tokenizer is {draft.kind}, the model's {main.kind}", "kind")
    if (unlike := _special("bos", main.add_bos, main.bos, draft.add_bos, draft.bos)) is not None:
        return Compatibility(False, unlike, "bos")
    if (unlike := _special("eos", main.add_eos, main.eos, draft.add_eos, draft.eos)) is not None:
        return Compatibility(False, unlike, "eos")
    sizes = len(main.tokens), len(draft.tokens)
    if abs(sizes[0] - sizes[1]) > MAX_SIZE_DIFFERENCE:
        words = f"the draft has {sizes[1]} tokens, the model {sizes[0]}: more than {MAX_SIZE_DIFFERENCE} apart"
        return Compatibility(False, words, "size")
    compared = min(sizes)
    if main.tokens[FIRST_COMPARED:compared] != draft.tokens[FIRST_COMPARED:compared]:
        place = next(i for i in range(FIRST_COMPARED, compared) if main.tokens[i] != draft.tokens[i])
        theirs, ours = _shown(draft.tokens[place]), _shown(main.tokens[place])
        return Compatibility(False, f"token {place} is {theirs} in the draft and {ours} in the model", "token", place)
    alike = max(0, compared - FIRST_COMPARED)
    words = f"both are {main.kind} with the same bos and eos, and {alike} tokens from id {FIRST_COMPARED} on are alike"
    return Compatibility(True, words)


def _special(name: str, adds: bool, own: int | None, draft_adds: bool, drafts: int | None) -> str | None:
    """How the two differ in whether, and which, ``name`` is put to a text; None where they do not."""
    if adds != draft_adds:
        return f"the {'draft' if draft_adds else 'model'} alone puts {name} to a text"
    if adds and own != drafts:
        return f"{name} is token {_number(drafts)} in the draft and {_number(own)} in the model"
    return None


def _number(token: int | None) -> str:
    return "none" if token is None else str(token)


def _shown(text: bytes) -> str:
    return repr(text[:40].decode("utf-8", "replace"))


def fingerprint(tokenizer: Tokenizer, size: int | None = None) -> str:
    """What the rule looks at, in one line: kind, bos and eos where added, number of tokens, SHA-256 over them.

    ``size``: over the first so many tokens only, to compare with a vocabulary that ends there.
    """
    size = len(tokenizer.tokens) if size is None else size
    digest = hashlib.sha256()
    for text in tokenizer.tokens[FIRST_COMPARED:size]:
        digest.update(text + b"\0")
    bos = _number(tokenizer.bos) if tokenizer.add_bos else "-"
    eos = _number(tokenizer.eos) if tokenizer.add_eos else "-"
    return f"{tokenizer.kind}/{bos}/{eos}/{size}/{digest.hexdigest()}"


def fits_fingerprint(main: Tokenizer, drafts: str) -> bool | None:
    """Does a draft with that fingerprint fit? None where it cannot be told (more tokens, or no fingerprint)."""
    parts = drafts.split("/")
    if len(parts) != 5 or not parts[3].isdecimal():
        return None
    size = int(parts[3])
    if abs(size - len(main.tokens)) > MAX_SIZE_DIFFERENCE:
        return False
    return None if size > len(main.tokens) else fingerprint(main, size) == drafts
