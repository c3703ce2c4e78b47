from __future__ import annotations

import pytest

from velollm.models.vocabulary import make_vocabulary


@pytest.mark.parametrize("size", [354, 2048, 32000, 151_936])
def test_size_and_uniqueness(size: int) -> None:
    words = make_vocabulary(size)
    assert len(words.tokens) == len(set(words.tokens)) == len(words.scores) == len(words.kinds) == size


def test_every_byte_has_a_token() -> None:
    words = make_vocabulary(354)
    assert [f"<0x{byte:02X}>" for byte in range(256)] == list(words.tokens[3 : words.muted])
    assert set(words.kinds[3 : words.muted]) == {6}


def test_every_piece_can_be_joined_from_two_others() -> None:
    words = make_vocabulary(32000)
    pieces = set(words.tokens[words.muted :])
    alone = [
        piece
        for piece in pieces
        if len(piece) > 1 and not any({piece[:i], piece[i:]} <= pieces for i in range(1, len(piece)))
    ]
    assert alone == []


@pytest.mark.parametrize("size", [0, 353, 10_000_000])
def test_impossible_sizes(size: int) -> None:
    with pytest.raises(ValueError, match="cannot have"):
        make_vocabulary(size)
