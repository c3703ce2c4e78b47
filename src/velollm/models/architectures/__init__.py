"""The architectures that models can be made in: one file each, with its metadata and its tensors."""

from __future__ import annotations

from functools import cache

from velollm.discover import collect
from velollm.errors import VeloError
from velollm.models.architectures.base import Architecture

__all__ = ["Architecture", "architecture_names", "find_architecture"]


@cache
def _by_name() -> dict[str, Architecture]:
    return {item.name: item for item in collect(__name__, "architecture", Architecture)}


def architecture_names() -> tuple[str, ...]:
    """Their names, as ``general.architecture`` has them."""
    return tuple(_by_name())


def find_architecture(name: str) -> Architecture:
    """The architecture of that name. Raises `VeloError` where models of it cannot be made."""
    found = _by_name().get(name)
    if found is None:
        raise VeloError(
            f"models of the architecture '{name}' cannot be made from a shape",
            f"these can: {', '.join(architecture_names())}; for others give a model to copy, with --like",
        )
    return found
