"""Smaller files of the same model that are here: how much faster they answer, and what the answers pay for it.

They are measured and shown, never put in the model's place: which file a name means is the user's word.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from velollm.autopilot.drafting import installed_models
from velollm.autopilot.order import Cockpit, Course
from velollm.autopilot.pricing import Stand, measure_prices
from velollm.autopilot.trial import run_arms
from velollm.backends.base import Backend, ModelRef
from velollm.backends.ollama import OllamaBackend
from velollm.bench.design import FLIGHT
from velollm.bench.run import Budget
from velollm.bench.stats import compare_arms
from velollm.bench.workload import load_workload
from velollm.errors import VeloError
from velollm.knobs import Knobs
from velollm.models.gguf import model_facts
from velollm.models.header import read_gguf
from velollm.models.memory import estimate_total_bytes
from velollm.models.siblings import same_model, worth_trying
from velollm.tune.keep import measured_metric
from velollm.tune.price import OtherFile

_PRICE_SHARE = 0.4
_UNQUANTIZED = frozenset({"F32", "F16", "BF16"})


def smaller_files(course: Course) -> list[Stand]:
    """The files worth trying, without knobs yet; none where the model's own file cannot be read."""
    path = course.model.path
    if path is None or course.twin:
        return []
    try:
        own = read_gguf(path)
    except VeloError:
        return []
    found: dict[Path, Stand] = {}
    for name, other in _at_hand(course, path):
        file = other.resolve()
        if file in found or not _is_smaller(file, path):
            continue
        with contextlib.suppress(VeloError):
            header = read_gguf(file)
            if same_model(own, header):
                facts = course.facts.model_copy(update={"model": model_facts(header, name)})
                found[file] = Stand(name, ModelRef(name, file), {}, facts)
    sizes = [file.stat().st_size for file in found]
    stands = list(found.values())
    return [stands[place] for place in worth_trying(sizes, model_facts(own, "").parameters)]


def _at_hand(course: Course, path: Path) -> list[tuple[str, Path]]:
    """Ollama's models, and files beside a model that is a file itself."""
    beside = sorted(path.parent.glob("*.gguf")) if path.suffix == ".gguf" else []
    found = [(str(file), file) for file in beside]
    with contextlib.suppress(VeloError):
        found += installed_models(course)
    return found


def _is_smaller(file: Path, than: Path) -> bool:
    try:
        return file.stat().st_size < than.stat().st_size
    except OSError:
        return False


def measure_smaller(
    course: Course, engine: Backend, files: Sequence[Stand], knobs: Knobs, budget_s: float, cockpit: Cockpit
) -> list[OtherFile]:
    """Each file with the knobs that won, in turns with the model's own, and the price of its answers.

    Raises:
        VeloError: one of them does not run, or the time is too short.
    """
    profile = course.plan.profile
    own = Stand("own", course.model, knobs, course.facts)
    stands = {f"smaller-{n}": replace(stand, knobs=knobs) for n, stand in enumerate(files)}

    def progress(done: float, text: str, left_s: float) -> None:
        cockpit(done, f"smaller files of the model: {text}", left_s)

    result = run_arms(
        course,
        dict.fromkeys((own.name, *stands), knobs),
        load_workload(profile.workload),
        Budget(budget_s * (1 - _PRICE_SHARE), quick=True),
        design=FLIGHT if profile.objective == "aggregate" else replace(FLIGHT, levels=()),
        progress=progress,
        engine=engine,
        logs="file-",
        files={arm: (stand.model, stand.facts) for arm, stand in stands.items()},
    )
    prices = measure_prices(course, engine, [own, *stands.values()], budget_s * _PRICE_SHARE, cockpit)
    metric = measured_metric(profile.objective, result.runs)
    return [
        OtherFile(
            stand.name,
            stand.facts.model.file_type if stand.facts.model else None,
            _memory_share(own, stand),
            metric,
            compare_arms(result.runs, own.name, arm, metric),
            price,
        )
        for (arm, stand), price in zip(stands.items(), prices, strict=True)
    ]


def _memory_share(own: Stand, other: Stand) -> float | None:
    found = [estimate_total_bytes(s.facts.model, s.knobs) if s.facts.model else None for s in (own, other)]
    return found[1] / found[0] if found[0] and found[1] else None


def note_of_none(course: Course) -> str | None:
    """What to say where there is no smaller file of a model that is not quantized."""
    model = course.facts.model
    if model is None or model.file_type not in _UNQUANTIZED or not isinstance(course.backend, OllamaBackend):
        return None
    return (
        f"no smaller file of this model is installed; one is made by `ollama create NAME --quantize q4_K_M` from a "
        f"Modelfile with FROM {course.model.name}, and the next race tries it"
    )
