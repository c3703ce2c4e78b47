from __future__ import annotations

import pytest

from velollm.knobs import KV_TYPES
from velollm.models.types import FILE_TYPES, TENSOR_TYPES, tensor_type


def test_block_sizes_are_those_of_the_gguf_package() -> None:
    from gguf.constants import GGML_QUANT_SIZES

    theirs = {int(kind): (kind.name.lower(), *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}
    ours = {number: (kind.name, kind.block, kind.block_bytes) for number, kind in TENSOR_TYPES.items()}
    # A newer package may know formats that we do not; the other way round would be an invention.
    assert ours.items() <= theirs.items()


def test_file_types_are_those_of_the_gguf_package() -> None:
    from gguf.constants import LlamaFileType

    theirs = {int(kind): kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in LlamaFileType}
    assert FILE_TYPES.items() <= theirs.items()


@pytest.mark.parametrize(("values", "size"), [(32, 18), (64, 36), (33, 36), (0, 0)])
def test_bytes_in_whole_blocks(values: int, size: int) -> None:
    kind = tensor_type("Q4_0")
    assert kind is not None
    assert kind.bytes_of(values) == size


def test_every_kv_type_has_a_size() -> None:
    assert all(tensor_type(name) is not None for name in KV_TYPES)
    assert tensor_type("q9_9") is None
