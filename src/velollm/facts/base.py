"""What all facts are made of."""

from __future__ import annotations

from velollm.modelfacts import Frozen as Frozen
