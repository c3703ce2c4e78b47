"""A working tokenizer for made models: SentencePiece style, pieces made of letters, any text through byte tokens.

llama.cpp's SPM tokenizer joins the two neighbours whose joint piece has the highest score
(``llm_tokenizer_spm`` in src/llama-vocab.cpp), so every piece of n letters needs pieces that it can be joined from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6
_SPACE = "\u2581"
# Letters in the order of their frequency in English, so that the commonest pairs and triples come first.
_LETTERS = "etaoinshrdlucmfwypvbgkjqxz"
_SPECIAL = (("<unk>", _UNKNOWN), ("<s>", _CONTROL), ("</s>", _CONTROL))
UNKNOWN_ID, BEGIN_ID, END_ID = 0, 1, 2


@dataclass(frozen=True)
class Vocabulary:
    """Tokens with their scores and kinds; the first ``muted`` (special and byte tokens) should rarely be written."""

    tokens: tuple[str, ...]
    scores: tuple[float, ...]
    kinds: tuple[int, ...]
    muted: int


def make_vocabulary(size: int) -> Vocabulary:
    """A vocabulary of ``size`` tokens.

    Special tokens, 256 byte tokens, printable ASCII, then the commonest pairs and triples of letters, with and
    without a blank before them.

    Raises:
        ValueError: the size holds no byte tokens and single characters, or more than there are pieces.
    """
    fixed = [*_SPECIAL, *((f"<0x{byte:02X}>", _BYTE) for byte in range(256))]
    pieces = _pieces()
    tokens = [text for text, _ in fixed]
    tokens.extend(text for text, _ in zip(pieces, range(size - len(fixed)), strict=False))
    if len(tokens) != size or size < len(fixed) + len(_single()):
        raise ValueError(f"a made vocabulary cannot have {size} tokens")
    kinds = [kind for _, kind in fixed] + [_NORMAL] * (size - len(fixed))
    # Earlier pieces join first, except that longer ones beat the shorter ones that they are made of.
    scores = [0.0] * len(fixed)
    scores += [100.0 * len(text) - index / size for index, text in enumerate(tokens[len(fixed) :])]
    return Vocabulary(tuple(tokens), tuple(scores), tuple(kinds), len(fixed))


def _single() -> tuple[str, ...]:
    return (_SPACE, *(chr(code) for code in range(0x21, 0x7F)))


def _pieces() -> Iterator[str]:
    yield from _single()
    yield from (_SPACE + letter for letter in _LETTERS)
    for length in (2, 3, 4):
        parts = sorted(product(range(len(_LETTERS)), repeat=length), key=lambda part: (sum(part), part))
        for part in parts:
            text = "".join(_LETTERS[index] for index in part)
            yield text
            yield _SPACE + text
