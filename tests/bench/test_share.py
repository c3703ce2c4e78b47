"""What is shared holds what was measured, and nothing that tells of a person."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from tests.bench.simulated import World
from velollm.backends.base import iter_backends
from velollm.bench.apart import key_of
from velollm.bench.design import Design
from velollm.bench.history import Record, make_record
from velollm.bench.run import Budget, run_bench
from velollm.bench.samples import CrowdFigures, Sample
from velollm.bench.share import Cleaner, parse_shared, record_of, render_shared, share_file
from velollm.bench.shared import BackendName, Buffer
from velollm.bench.stats import compare_arms
from velollm.bench.workload import load_workload
from velollm.errors import VeloError
from velollm.facts import CpuFacts, Facts, Frozen, GpuFacts, MadeFacts, MemoryFacts, ModelFacts
from velollm.models.memory import TERMS
from velollm.report.benchstat import render_benchstat

DIGEST = "sha256-" + "0123456789abcdef" * 4
FACTS = Facts(
    os="linux",
    cpu=CpuFacts(model_name="AMD Ryzen 9 7950X 16-Core Processor", isa=("avx2", "vnni"), usable_cores=16),
    memory=MemoryFacts(total_bytes=64 << 30),
    gpus=(GpuFacts(vendor="nvidia", name="NVIDIA GeForce RTX 3060", vram_bytes=12 << 30, driver_version="570.86.10"),),
    container="docker",
    model=ModelFacts(
        name="/home/alice/tiny.gguf", architecture="llama", parameters=1_100_048_384, made=MadeFacts(kind="random")
    ),
)


def public(name: str) -> str | None:
    return "llama3.2:3b" if name == "llama3.2:3b" else None


@pytest.fixture(scope="module")
def record() -> Record:
    world = World()
    arms = [world.arm("default", slots=2, crowds=(2,)), world.arm("mine", decode=60.0, slots=2, crowds=(2,))]
    design = Design(levels=(2,), control=True, whole=True)
    result = run_bench(arms, load_workload("chat"), Budget(900.0), clock=world.clock, design=design, tuned="mine")
    return make_record(
        result,
        model="llama3.2:3b",
        backend="ollama",
        facts=FACTS,
        knobs={
            "default": {"threads": 8, "gpu_layers": None},
            "mine": {"threads": 4, "draft_model": "/home/alice/d.gguf"},
        },
        profile="chat",
        engine_version="0.33.0-rc2",
        digests={"default": DIGEST, "mine": DIGEST},
    )


def shared_text(record: Record, *personal: str) -> str:
    return render_shared(share_file([record], "1.0", public, Cleaner(personal)))


def test_what_was_measured_comes_back(record: Record) -> None:
    text = shared_text(record)
    (found,) = parse_shared(text.encode(), "x.json").results
    back = record_of(found)
    assert back.id == record.id
    assert back.arms == ("default", "arm-2")
    assert [s.arm for s in back.samples[:3]] == ["default", "arm-2", "default-control"]
    assert [dataclasses.replace(s, arm="") for s in back.samples] == [
        dataclasses.replace(s, arm="") for s in record.samples
    ]
    before = compare_arms(record.samples, "default", "mine", "decode")
    assert compare_arms(back.samples, "default", back.tuned, "decode") == before
    assert back.knobs == {"default": {"threads": 8, "gpu_layers": None}, "arm-2": {"threads": 4}}
    assert (back.model, back.engine_version, back.profile) == ("llama3.2:3b", "0.33.0-rc2", "chat")
    facts = Facts.model_validate(back.facts)
    assert facts.cpu is not None and facts.gpus is not None and FACTS.gpus is not None
    assert facts.cpu.model_name == "AMD Ryzen 9 7950X 16-Core Processor"
    assert facts.gpus == FACTS.gpus
    assert any("made one" in note for note in back.notes)
    assert "alice" not in text


def test_an_imported_result_judges_nothing_here(record: Record) -> None:
    back = record_of(parse_shared(shared_text(record).encode(), "x.json").results[0])
    assert back.origin == "imported"
    assert key_of(record, "default") is not None
    assert key_of(back, "default") is None


def test_a_model_of_ones_own_is_known_by_its_shape(record: Record) -> None:
    mine = record.model_copy(update={"model": "alices-secret"})
    back = record_of(parse_shared(shared_text(mine).encode(), "x.json").results[0])
    assert back.model == "llama 1.1B"


# Nothing personal: such texts are put in every place of a record that can hold a text.

PERSONAL = {
    "user": "alice",
    "home": "/home/alice/models/mine.gguf",
    "windows": r"C:\Users\alice",
    "host": "zeppelin-7",
    "address": "192.168.7.23",
    "address 6": "fe80::1c2d:3e4f",
    "mac": "52:54:00:12:34:56",
    "url": "http://inside.example.org:8080/v1",
    "mail": "alice@example.org",
    "uuid": "GPU-8c2f6b1e-93ad-4c3f-a1d2-77f0e3b9c001",
    "serial": "4C4C4544004D3510",
    "prompt": "my diagnosis, in my own words",
    "key": "sk-proj-nobody-must-see-this",
}
# Words of products. A prompt or a key never stands there, so such a text cannot be told from one.
OPEN = (
    *("os", "cpu.model_name", "cpu.architecture", "cpu.isa", "model.architecture", "model.file_type", "engine_version"),
    *(f"gpus.{name}" for name in ("vendor", "name", "compute_capability", "driver_version")),
)
OPAQUE = ("prompt", "key")


def filled(annotation: Any, plant: Callable[[str], str], path: str = "") -> Any:
    """A value of this type, with a planted text wherever there can be one."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return filled(arguments[0], plant, path)
    if origin in (typing.Union, types.UnionType):
        return filled(next(a for a in arguments if a is not types.NoneType), plant, path)
    if origin is typing.Literal:
        return arguments[0]
    if origin is tuple:
        parts = arguments[:1] if arguments[-1] is ... else arguments
        return tuple(filled(part, plant, path) for part in parts)
    if origin is not None and issubclass(origin, Mapping):
        return {filled(arguments[0], plant, path): filled(arguments[1], plant, path)}
    if isinstance(annotation, type) and issubclass(annotation, BaseModel | Frozen):
        names = annotation.field_names() if issubclass(annotation, Frozen) else annotation.model_fields
        kinds = {name: kind for name, kind in typing.get_type_hints(annotation).items() if name in names}
        values = {n: filled(kind, plant, f"{path}.{n}" if path else n) for n, kind in kinds.items()}
        return annotation.model_validate(values)
    return {str: plant(path), int: 7, float: 0.5, bool: True}[annotation]


def planted(record: Record, kind: str) -> Record:
    text = PERSONAL[kind]

    def plant(path: str) -> str:
        return "plain" if kind in OPAQUE and path in OPEN else text

    facts = filled(Facts, plant)
    names = {"default": "default", "mine": text, "default-control": "default-control"}
    samples = tuple(
        dataclasses.replace(
            sample,
            arm=names[sample.arm],
            workload=text,
            error=text,
            aggregate_error=text,
            energy_basis=text,
            crowds=tuple(dataclasses.replace(crowd, error=text) for crowd in sample.crowds),
        )
        for sample in record.samples
    )
    return record.model_copy(
        update={
            "model": text,
            "workload": text,
            "profile": text,
            "engine_version": plant("engine_version"),
            "machine": text,
            "facts": facts.model_dump(mode="json"),
            "knobs": {"default": {"threads": text, "flash_attention": text, text: 4}, text: {"draft_model": text}},
            "samples": samples,
            "starts": tuple(
                dataclasses.replace(start, arm=names[start.arm], buffers={text: 7, "kv": 8}) for start in record.starts
            ),
            "notes": (text,),
            "incomplete": text,
            "digests": {"default": text, text: text},
            "answers": {"default": text},
            "tuned": text,
            "id": text,
        }
    )


@pytest.mark.parametrize("kind", PERSONAL)
def test_nothing_personal_is_shared(record: Record, kind: str) -> None:
    text = PERSONAL[kind]
    dirty = planted(record, kind)
    assert dirty.model_dump_json().count(json.dumps(text)[1:-1]) > 100
    shared = share_file([dirty], "1.0", public, Cleaner(("alice", "zeppelin-7")))
    for written in (render_shared(shared), render_benchstat([record_of(result) for result in shared.results])):
        for part in (text, json.dumps(text)[1:-1], "alice", "zeppelin", "example", "diagnosis"):
            assert part.lower() not in written.lower()
        assert "ttft" in written
    (result,) = parse_shared(render_shared(shared).encode(), "x.json").results
    assert [arm.name for arm in result.arms] == ["default", "arm-2"]
    assert result.arms[0].knobs == {}


def test_every_text_of_facts_was_planted() -> None:
    assert filled(Facts, lambda path: path).model_dump()["gpus"][0]["name"] == "gpus.name"
    texts = filled(Facts, lambda _: "XX").model_dump_json().count("XX")
    assert texts > 120


@pytest.mark.parametrize(
    "name",
    [
        "AMD Radeon RX 6700 XT / 6750 XT",
        "Intel(R) Core(TM) i7-1260P CPU @ 2.10GHz",
        "Apple M3 Max",
        "Snapdragon(R) X Elite - X1E78100 - Qualcomm(R) Oryon(TM) CPU",
        "32.0.15.6094",
        "NVIDIA GB10",
        "Cortex-A76 + Cortex-A55",
    ],
)
def test_names_of_products_go_through(name: str) -> None:
    assert Cleaner(("alice",)).word(name) == name


def test_a_product_that_is_called_like_the_user_is_left_out() -> None:
    assert Cleaner(("ryzen",)).word("AMD Ryzen 9") is None
    assert Cleaner(("ryz",)).word("AMD Ryzen 9") == "AMD Ryzen 9"


# Files from outside.


def doctored(record: Record, change: Callable[[dict[str, Any]], object]) -> bytes:
    document = json.loads(shared_text(record))
    change(document)
    return json.dumps(document).encode()


WRONG: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "newer": (lambda d: d.update(schema_version=2), "newer VeloLLM"),
    "newer, with more": (lambda d: d.update(schema_version=9, more=1), "newer VeloLLM"),
    "another format": (lambda d: d.update(format="bench"), "holds no results"),
    "nothing": (lambda d: d.update(results=[]), "results"),
    "a field too many": (lambda d: d["results"][0].update({"prompt\x1b[2J": "x"}), "prompt?[2J"),
    "a text for a number": (lambda d: d["results"][0]["samples"][3].update(ttft_s="0.5"), "results.0.samples.3.ttft_s"),
    "a negative time": (lambda d: d["results"][0]["samples"][0].update(ttft_s=-1), "samples.0.ttft_s"),
    "an endless time": (lambda d: d["results"][0]["samples"][0].update(ttft_s=float("inf")), "samples.0.ttft_s"),
    "no such day": (lambda d: d["results"][0].update(taken_at="2026-02-31T00:00:00+00:00"), "taken_at"),
    "an id with a path": (lambda d: d["results"][0].update(id="../../x"), "id"),
    "an unknown arm": (lambda d: d["results"][0]["samples"][0].update(arm="other"), "arms must"),
    "a knob with a path": (lambda d: d["results"][0]["arms"][0]["knobs"].update(draft="/etc/passwd"), "no word"),
    "escapes": (lambda d: d["results"][0]["machine"].update(cpu="\x1b]0;x\x07"), "machine.cpu"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_refused_with_its_place(record: Record, name: str) -> None:
    change, words = WRONG[name]
    with pytest.raises(VeloError) as caught:
        parse_shared(doctored(record, change), "x.json")
    assert words in caught.value.message
    assert caught.value.message.isprintable()
    assert caught.value.hint


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"null", b"{", b"\xff\xfe", b"[" * 200_000, b'{"format": "velollm-result"}']
)
def test_what_is_no_such_file_is_refused(data: bytes) -> None:
    with pytest.raises(VeloError):
        parse_shared(data, "x.json")


def test_a_huge_file_is_refused(monkeypatch: pytest.MonkeyPatch, record: Record) -> None:
    monkeypatch.setattr("velollm.bench.share.MOST_BYTES", 1 << 20)
    text = shared_text(record).encode()
    assert parse_shared(text, "x.json")
    with pytest.raises(VeloError, match="larger than 1 MiB"):
        parse_shared(text + b" " * (1 << 20), "x.json")


@settings(max_examples=60)
@given(st.data())
def test_no_change_of_a_file_is_a_traceback(record: Record, data: st.DataObject) -> None:
    text = bytearray(shared_text(record).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = parse_shared(bytes(text), "x.json")
    except VeloError:
        return
    for result in found.results:
        assert record_of(result).origin == "imported"


def test_an_old_record_can_be_shared() -> None:
    given = {"id": "1", "taken_at": "2025-01-01T00:00:00+00:00", "model": "m", "backend": "ollama", "workload": "chat"}
    sample = Sample("default", "chat", 0, 0, ttft_s=0.5, crowds=(CrowdFigures(4, 9.0),))
    old = Record.model_validate({**given, "quick": True, "facts": {"unheard": 1}, "knobs": {}, "samples": [sample]})
    (result,) = parse_shared(shared_text(old).encode(), "x.json").results
    assert result.id.startswith("20250101-000000-")
    assert record_of(result).samples == (sample,)


def test_the_form_knows_every_backend_and_every_kind_of_buffer() -> None:
    assert {backend.name for backend in iter_backends()} == set(typing.get_args(BackendName))
    assert set(typing.get_args(Buffer)) == {*TERMS, "draft", "picture"}


def test_the_schema_is_that_of_the_form(record: Record) -> None:
    schema = json.loads((Path(__file__).parents[2] / "docs" / "result-schema.json").read_text(encoding="utf-8"))
    document = json.loads(shared_text(record))
    assert set(document) <= set(schema["properties"])
    assert set(document["results"][0]) <= set(schema["$defs"]["SharedResult"]["properties"])
    assert all(part.get("additionalProperties") is False for part in schema["$defs"].values() if "properties" in part)
