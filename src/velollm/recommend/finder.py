"""From a request to a recommendation: machine, rates, history, and the model that was named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from velollm.backends.ollama import OllamaBackend
from velollm.backends.ollama_defaults import ollama_default_knobs
from velollm.backends.ollama_library import is_in_library
from velollm.bench.history import read_history
from velollm.config import Paths
from velollm.errors import UsageError, VeloError
from velollm.estimate.kept import with_kept
from velollm.facts import Facts, ModelFacts
from velollm.knobs import Profile, Wish
from velollm.models.accelerators import fill_from_table
from velollm.models.catalog import find_catalog_choice, near_names
from velollm.models.formats import find_format
from velollm.models.gguf import model_facts
from velollm.models.header import read_gguf
from velollm.models.reads import active_weight_bytes
from velollm.models.speed import Estimated, Rate, estimate_decode
from velollm.models.weights import reformatted
from velollm.probe.hardware import read_hardware
from velollm.probe.machine import probe_machine
from velollm.probe.speedtest import MachineSpeed, machine_speed
from velollm.recommend.choose import (
    LADDER,
    Recommendation,
    recommend_format,
    recommend_format_of,
    recommend_of_catalog,
    unknown_model,
)
from velollm.recommend.get import Way, way_to
from velollm.recommend.history import NEWEST, Calibration, calibrate
from velollm.recommend.options import Speeds, device_speeds
from velollm.rules.room import as_idle

_PLAIN = frozenset({"f16", "bf16", "f32"})


@dataclass(frozen=True)
class Answer:
    """A recommendation with what it was made from. ``way`` None: the model cannot be got by itself.

    ``next_ways`` are those to the other options, best first. ``measured``: this machine's rates; None for a described
    machine.
    """

    facts: Facts
    speeds: Speeds
    measured: MachineSpeed | None
    recommendation: Recommendation
    way: Way | None
    next_ways: tuple[Way, ...] = ()
    models_dir: Path | None = None


@dataclass
class Finder:
    """What a recommendation is made for: this machine, or the one that ``hardware`` describes.

    ``note`` tells a person what else there is to know.
    """

    paths: Paths
    profile: Profile
    hardware: Path | None = None
    backend: OllamaBackend = field(default_factory=OllamaBackend)
    note: Callable[[str], None] = lambda _: None

    def find(self, model: str | None) -> Answer:
        """The recommendation, of the whole catalog or of one model's formats.

        Raises:
            VeloError: the hardware file or the model is not understood.
        """
        facts = as_idle(fill_from_table(read_hardware(self.hardware))) if self.hardware else probe_machine(sample_s=0)
        measured = None if self.hardware else machine_speed(self.paths.data, facts)
        wish = Wish(self.profile, ollama_default_knobs(facts), backend="ollama")
        speeds = device_speeds(facts, wish, *_rates(measured))
        calibration = self.calibration(facts, speeds)
        source: str | None = None
        if model is None:
            found = recommend_of_catalog(facts, wish, speeds, calibration)
        elif (choice := find_catalog_choice(model)) is not None:
            only = choice.format.name if "@" in model else None
            found = recommend_format(choice.row, facts, wish, speeds, calibration, only=only)
        else:
            source, variants = self._installed(model)
            found = recommend_format_of(variants, facts, wish, speeds, calibration)
        tags = self._tags()
        way = None if found.best is None else way_to(found.best, tags, source=source)
        others = (way_to(option, tags, source=source) for option in found.others)
        next_ways = tuple(other for other in others if other is not None)
        return Answer(facts, speeds, measured, found, way, next_ways, self._models_dir(facts))

    def is_gone(self, way: Way) -> bool:
        """Does the library say that it does not have the model (any more)? One that cannot be asked does not."""
        return way.kind == "pull" and is_in_library(way.name) is False

    def close(self) -> None:
        """Close the connections to the server."""
        if "api" in vars(self.backend):
            self.backend.api.close()

    def require_server(self) -> None:
        """Raise `VeloError` where no server answers."""
        self.backend.api.version()

    def calibration(self, facts: Facts, speeds: Speeds) -> Calibration:
        """What this machine's history says of its estimates; nothing for a described one."""
        if self.hardware:
            return Calibration()

        def estimate(model: ModelFacts, on_gpu: bool) -> Estimated | None:
            active = active_weight_bytes(model)
            device = speeds.gpu if on_gpu else speeds.cpu
            if active is None or device is None:
                return None
            return estimate_decode([(device, active)], sparse=bool(model.experts))

        try:
            return calibrate(read_history(self.paths.data, NEWEST).records, facts, estimate)
        except VeloError as error:
            # A damaged history costs its corrections, not the recommendation.
            self.note(f"Without this machine's own measurements: {error.message} ({error.hint}).")
            return Calibration()

    def _tags(self) -> Sequence[dict[str, Any]]:
        """The installed models of this machine's server; none for a described machine, or without a server."""
        if self.hardware is not None or self.backend.version is None:
            return ()
        return self.backend.api.tags()

    def _models_dir(self, facts: Facts) -> Path | None:
        server = facts.server
        if self.hardware is not None or server is None or server.remote or server.models_dir is None:
            return None
        return Path(server.models_dir)

    def _installed(self, name: str) -> tuple[str, list[tuple[str, str, ModelFacts]]]:
        """An installed model outside the catalog, in each format that can be made of it, or the one behind @."""
        if self.hardware is not None:
            raise unknown_model(name, near_names(name))
        name, _, only = name.partition("@")
        names = {str(entry.get("name", "")) for entry in self._tags()}
        full = next((known for known in (name, f"{name}:latest") if known in names), None)
        if full is None:
            raise unknown_model(name, near_names(name))
        path = self.backend.find_model(full).path
        if path is None:
            raise VeloError(f"the file of {name} cannot be read", "run this as a user who may read Ollama's models")
        header = read_gguf(path)
        own = with_kept(self.paths.data, model_facts(header, full), path, "ollama")
        if (own.file_type or "").lower() not in _PLAIN:
            raise UsageError(
                f"{name} is in {own.file_type or 'an unknown format'}, and only 16-bit weights can be made smaller",
                "name a model of the catalog, or one with F16 weights",
            )
        variants = [(full, (own.file_type or "f16").lower(), own)]
        for step in LADDER[1:]:
            form = find_format(step)
            assert form is not None
            variants.append((f"{full}@{step}", step, reformatted(own, header.tensors, form)))
        wanted = find_format(only) if only else None
        if only and (wanted is None or wanted.name not in LADDER):
            raise UsageError(f"Ollama makes no '{only}' of a model", f"formats: {', '.join(LADDER)}")
        return full, [variant for variant in variants if wanted is None or variant[1] == wanted.name]


def _rates(measured: MachineSpeed | None) -> tuple[Rate | None, Rate | None]:
    if measured is None:
        return None, None
    words = f"measured here on {measured.taken_at[:10]}"
    if measured.disturbed:
        words += " while other programs kept the processor busy"
    return Rate(measured.read_bytes_per_s, "measured", words), Rate(measured.multiply_flops, "measured", words)
