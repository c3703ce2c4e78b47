"""What all facts are made of."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Base of all facts: immutable, and no field that is not declared."""

    model_config = ConfigDict(frozen=True, extra="forbid")
