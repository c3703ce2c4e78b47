"""What all facts are made of."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Base of all facts: immutable, and no field that is not declared."""

    # Schemas are built when they are first used: a command needs few of them, and building all takes 0.1 s.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)
