"""A result as a file to show to others: what was measured, on what and with what, and nothing that tells of a person.

Only what these classes name leaves the machine, and texts only where they are words of products and engines: names of
models that everybody can get, of processors and GPUs, versions, and the knobs' own values.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from velollm.bench.samples import CONTROL

FORMAT = "velollm-result"
SHARE_VERSION = 1

WORD = r"^[A-Za-z0-9][A-Za-z0-9 _.,:;+()\[\]@®™/-]{0,119}$"
ID = r"^\d{8}-\d{6}-[0-9a-f]{6}$"
TIME = r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\+00:00$"
DIGEST = r"^(sha256-[0-9a-f]{64}|[0-9a-f]{32}-\d{1,18})$"
NAME = r"^[a-z0-9][a-z0-9-]{0,63}$"
_MOST_RESULTS = 1000
_MOST_SAMPLES = 100_000

Word = Annotated[str, Field(pattern=WORD)]
Name = Annotated[str, Field(pattern=NAME)]
Count = Annotated[int, Field(ge=0, le=1 << 60)]
Amount = Annotated[float, Field(ge=0)]
BackendName = Literal["ollama", "llamacpp", "embedded", "openai"]
Buffer = Literal["weights", "repack", "kv", "recurrent", "compute", "output", "draft", "picture"]
EnergyBasis = Literal["GPU (NVML)", "processor (RAPL)", "GPU (NVML) + processor (RAPL)"]


class Shared(BaseModel):
    """Base of all: immutable, no field that is not declared, no infinity."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, defer_build=True, use_attribute_docstrings=True
    )


class SharedGpu(Shared):
    """A GPU."""

    vendor: Name | None = None
    name: Word | None = None
    vram_bytes: Count | None = None
    integrated: bool | None = None
    unified_memory: bool | None = None
    compute_capability: Word | None = None
    driver_version: Word | None = None


class SharedMachine(Shared):
    """The machine that the engine ran on; null: not known."""

    os: Name | None = None
    cpu: Word | None = None
    architecture: Word | None = None
    instructions: tuple[Name, ...] | None = None
    physical_cores: Count | None = None
    logical_cores: Count | None = None
    usable_cores: Count | None = None
    """Hardware threads that this process might use."""
    memory_bytes: Count | None = None
    memory_limit_bytes: Count | None = None
    """The limit of the control group, where there is one."""
    gpus: tuple[SharedGpu, ...] | None = None
    container: bool | None = None
    virtual_machine: bool | None = None
    wsl: bool | None = None


class SharedModel(Shared):
    """A model. Its name is there only where everybody can get a model of that name."""

    name: Word | None = None
    architecture: Word | None = None
    parameters: Count | None = None
    layers: Count | None = None
    format: Word | None = None
    """The file's number format, such as Q4_K_M."""
    file_bytes: Count | None = None
    digest: Annotated[str, Field(pattern=DIGEST)] | None = None
    """Ollama's digest of the file; else the digest of its first 64 KiB, and its size."""
    made: Literal["random", "predictable"] | None = None
    """Set where VeloLLM made the model, with random weights."""


class SharedArm(Shared):
    """One thing that was measured: the first arm is what the others are compared with."""

    name: Name
    """`default` (the engine's own choice), `current` (what was set), `tuned` (VeloLLM's plan), else a number."""
    knobs: dict[str, bool | int | float | str | None]
    """Settings in VeloLLM's words (docs/knobs.md); null is the engine's own choice."""
    model: SharedModel | None = None
    """Null: nothing is known of it."""

    @field_validator("knobs")
    @classmethod
    def _plain(cls, knobs: dict[str, bool | int | float | str | None]) -> dict[str, bool | int | float | str | None]:
        for name, value in knobs.items():
            if not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", name):
                raise ValueError("a knob's name is of small letters and _")
            if isinstance(value, str) and not re.fullmatch(r"[A-Za-z0-9_.-]{1,40}", value):
                raise ValueError(f"{name} holds no word")
        return knobs


class SharedCrowd(Shared):
    """Several users at once."""

    users: Count
    tokens_per_s: Amount | None = None
    worst_ttft_s: Amount | None = None
    fairness: Amount | None = None
    tokens: Count = 0
    wall_s: Amount | None = None
    failed: bool = False


class SharedSample(Shared):
    """One round of one arm; null is "not measured"."""

    arm: Name
    """Name of the arm; with `-control` behind it, the first arm once more."""
    round: Count
    order: Count
    """The arm's place in the round."""
    ttft_s: Amount | None = None
    answer_ttft_s: Amount | None = None
    cached_ttft_s: Amount | None = None
    prefill_tokens_per_s: Amount | None = None
    decode_tokens_per_s: Amount | None = None
    itl_p50_s: Amount | None = None
    itl_p95_s: Amount | None = None
    itl_p99_s: Amount | None = None
    turn_s: Amount | None = None
    aggregate_4_tokens_per_s: Amount | None = None
    worst_ttft_4_s: Amount | None = None
    aggregate_tokens: Count | None = None
    aggregate_s: Amount | None = None
    crowds: tuple[SharedCrowd, ...] = ()
    prefill_basis: Literal["engine", "client"] | None = None
    """Whose clock the prefill was timed by."""
    prompt_tokens: Count | None = None
    cached_prompt_tokens: Count | None = None
    answer_tokens: Count = 0
    answer_s: Amount | None = None
    finish: Literal["length", "stop", "time", "error"] = "error"
    drafted_tokens: Count | None = None
    accepted_tokens: Count | None = None
    peak_memory_bytes: Count | None = None
    gpu_memory_bytes: Count | None = None
    energy_j: Amount | None = None
    energy_basis: EnergyBasis | None = None
    failed: bool = False
    """A request of one user failed."""
    aggregate_failed: bool = False


class SharedStart(Shared):
    """One start of an arm's server."""

    arm: Name
    load_s: Amount
    cold_ttft_s: Amount | None = None
    buffers: dict[Buffer, Count] = Field(default_factory=dict)
    """Bytes that the engine's log says it allocated."""


class SharedConditions(Shared):
    """The machine between two rounds."""

    busy_cores: Amount | None = None
    swapped_bytes: Count | None = None
    throttles: Count | None = None
    gpu_throttled: bool | None = None
    on_battery: bool | None = None


class SharedResult(Shared):
    """One comparison."""

    id: Annotated[str, Field(pattern=ID)]
    taken_at: Annotated[str, Field(pattern=TIME)]
    """UTC, ISO 8601."""
    backend: BackendName
    engine_version: Word | None = None
    profile: Name | None = None
    workload: Name
    """One that comes with VeloLLM, or `own`."""
    depth_tokens: Count = 0
    quick: bool
    incomplete: bool = False
    """The run broke off."""
    elsewhere: bool = False
    """The server was another machine's, and `machine` is that of the one who asked."""
    tuned: Name = "tuned"
    """The arm that `ratio` is of."""
    machine: SharedMachine
    arms: Annotated[tuple[SharedArm, ...], Field(max_length=64)]
    samples: Annotated[tuple[SharedSample, ...], Field(max_length=_MOST_SAMPLES)]
    starts: Annotated[tuple[SharedStart, ...], Field(max_length=_MOST_SAMPLES)] = ()
    conditions: Annotated[tuple[SharedConditions, ...], Field(max_length=_MOST_SAMPLES)] = ()
    elapsed_s: Amount | None = None
    budget_s: Amount | None = None

    @field_validator("taken_at")
    @classmethod
    def _is_a_time(cls, text: str) -> str:
        datetime.fromisoformat(text)
        return text

    @model_validator(mode="after")
    def _known_arms(self) -> SharedResult:
        names = {arm.name for arm in self.arms}
        used = {sample.arm.removesuffix(CONTROL) for sample in self.samples} | {
            start.arm.removesuffix(CONTROL) for start in self.starts
        }
        if len(names) < len(self.arms) or not used <= names:
            raise ValueError("arms must have names of their own, and samples those of arms")
        return self


class SharedFile(Shared):
    """Results of VeloLLM to share: `velollm export` writes them, `velollm import` reads them."""

    format: Literal["velollm-result"] = "velollm-result"
    schema_version: Literal[1] = 1
    velollm_version: Word
    results: Annotated[tuple[SharedResult, ...], Field(min_length=1, max_length=_MOST_RESULTS)]
