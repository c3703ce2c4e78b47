"""Popular models that need not be here: their shape as facts, for each number format.

The table is `configs/models.yaml`. Weights are worked out tensor by tensor from the shape (`layout`, `formats`), so a
model of the catalog is known as well as one whose header was read; what a listing says of its file stands beside it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from velollm.facts import MlaFacts, ModelFacts, SsmFacts
from velollm.models.catalog_row import CatalogModel
from velollm.models.formats import Format, find_format, load_formats
from velollm.models.weights import catalog_weights
from velollm.models.yamlfile import load_rows, load_value

_DEFAULT_FORMAT = "q4_K_M"
_SEPARATOR = "@"


@dataclass(frozen=True)
class CatalogChoice:
    """One model in one format."""

    row: CatalogModel
    format: Format

    @property
    def name(self) -> str:
        """What `find_catalog_model` takes."""
        return f"{self.row.name}{_SEPARATOR}{self.format.name}"

    @property
    def ollama_name(self) -> str | None:
        """What the Ollama library calls it; None where it is not there, or not under a known name."""
        if self.is_default:
            return self.row.ollama[0] if self.row.ollama else None
        return self.row.tags.get(self.format.name)

    @property
    def is_default(self) -> bool:
        """Is this what the model's first Ollama tag holds?"""
        return default_format(self.row) == self.format.name


@lru_cache(maxsize=1)
def load_catalog() -> tuple[CatalogModel, ...]:
    """All models of the catalog.

    Raises:
        VeloError: the table that ships with the program is missing or broken.
    """
    return tuple(CatalogModel.model_validate(row) for row in load_rows("models", "models"))


def catalog_listed() -> str:
    """The day of the library's listing that the catalog's names are from."""
    return str(load_value("models", "listed"))


def catalog_names() -> tuple[str, ...]:
    """Every name that the catalog knows, without formats."""
    return tuple(sorted(_by_name()))


@lru_cache(maxsize=1)
def _by_name() -> dict[str, CatalogModel]:
    names: dict[str, CatalogModel] = {}
    for row in load_catalog():
        for name in (row.id, *row.ollama):
            names.setdefault(name.lower(), row)
            if name.endswith(":latest"):
                names.setdefault(name.removesuffix(":latest").lower(), row)
    return names


@lru_cache(maxsize=1)
def _by_tag() -> dict[str, CatalogChoice]:
    """Names of the Ollama library that stand for one format."""
    found: dict[str, CatalogChoice] = {}
    for row in load_catalog():
        for name, tag in row.tags.items():
            if (form := find_format(name)) is not None:
                found.setdefault(tag.lower(), CatalogChoice(row, form))
    return found


def find_catalog_choice(name: str) -> CatalogChoice | None:
    """The model and format that a name means: ``llama3.1:8b``, ``llama3.1:8b@q8_0``, ``llama3.1-8b``,
    ``llama3.1:8b-instruct-q8_0``. None where the catalog does not know the model or the format.
    """
    base, _, wanted = name.strip().partition(_SEPARATOR)
    if not wanted and (tagged := _by_tag().get(base.lower())) is not None:
        return tagged
    row = _by_name().get(base.lower())
    if row is None and not wanted:
        row, wanted = _split_tag(base)
    if row is None:
        return None
    found = find_format(wanted or default_format(row))
    return None if found is None else CatalogChoice(row, found)


def _split_tag(name: str) -> tuple[CatalogModel | None, str]:
    """A tag with words and a format behind its size, as the Ollama library has them (``8b-instruct-q8_0``)."""
    match = re.fullmatch(r"([^:]+:[^-]+(?:-[a-z]\d+b)?)(?:-[a-z0-9.]+)*-([a-z0-9_]+)", name.lower())
    if match is None or find_format(match.group(2)) is None:
        return None, ""
    return _by_name().get(match.group(1)), match.group(2)


def find_alike(model: ModelFacts) -> CatalogModel | None:
    """The model of the catalog with the shape of this one, by whatever name it goes; None where there is none."""
    for row in load_catalog():
        shape = (row.architecture, row.layers, row.embedding_length, row.vocab)
        if shape != (model.architecture, model.layers, model.embedding_length, model.vocab):
            continue
        alike = catalog_facts(CatalogChoice(row, find_format("f16") or load_formats()[0]))
        told = ("parameters", "feed_forward_length", "kv_heads")
        if all(getattr(model, name) in (None, getattr(alike, name)) for name in told):
            return row
    return None


def find_catalog_model(name: str) -> ModelFacts | None:
    """Facts of a catalog model by name, in the format named behind ``@`` or in its default one.

    ``path`` is None, and ``file_bytes`` is what a listing says or, where none does, the tensors' sum.
    """
    choice = find_catalog_choice(name)
    return None if choice is None else catalog_facts(choice)


def default_format(row: CatalogModel) -> str:
    """The format behind the model's first Ollama tag; q4_K_M where that is not known."""
    found = find_format(row.default_quant) if row.default_quant else None
    return _DEFAULT_FORMAT if found is None else found.name


def near_names(name: str, count: int = 3) -> tuple[str, ...]:
    """Names of the catalog that are spelled like this one."""
    from difflib import get_close_matches

    base = name.partition(_SEPARATOR)[0].lower()
    names = catalog_names()
    family = base.partition(":")[0]
    close = get_close_matches(base, names, n=count, cutoff=0.6)
    close += [known for known in names if known.partition(":")[0] == family and known not in close]
    return tuple(close[:count])


def catalog_facts(choice: CatalogChoice) -> ModelFacts:
    """Facts of one model in one format."""
    row = choice.row
    weights = catalog_weights(row, choice.format)
    listed = row.listed_bytes(choice.format.name)
    pattern = row.pattern
    sliding = tuple(letter == "S" for letter in pattern)
    attends = any(letter in "ASH" for letter in pattern)
    key, value = row.head_lengths(sliding=False)
    shape: dict[str, object] = {
        "name": choice.name,
        "file_bytes": listed[0] if listed else weights["tensor_bytes"],
        "architecture": row.architecture,
        "layers": row.layers,
        "embedding_length": row.embedding_length,
        "feed_forward_length": tuple(row.feed_forward_of(layer) for layer in range(row.layers)),
        "heads": tuple(row.heads_of(layer) for layer in range(row.layers)) if attends else (0,) * row.layers,
        "kv_heads": tuple(row.kv_heads_of(layer) for layer in range(row.layers)),
        "key_length": key if attends else None,
        "value_length": value if attends else None,
        "key_length_swa": row.key_length_swa,
        "value_length_swa": row.value_length_swa,
        "vocab": row.vocab,
        "context_train": row.context_train_tokens,
        "sliding_window": row.sliding_window_tokens,
        "sliding_layers": sliding,
        "recurrent_layers": tuple(letter in "RH" for letter in pattern),
        "kv_shared_layers": row.kv_shared_layers or 0,
        "mtp_layers": row.mtp_layers_in_file,
        "file_type": choice.format.name.upper(),
        "mla": _mla(row),
        "ssm": _ssm(row),
        **_experts(row),
    }
    return ModelFacts.model_validate({**shape, **weights})


def _experts(row: CatalogModel) -> dict[str, int]:
    if row.experts is None:
        return {}
    return {
        "experts": row.experts.count,
        "experts_used": row.experts.used,
        "expert_feed_forward_length": row.experts.length,
    }


def _mla(row: CatalogModel) -> MlaFacts | None:
    if row.mla is None:
        return None
    return MlaFacts(
        kv_lora_rank=row.mla.kv_lora_rank,
        rope_dims=row.mla.rope_length,
        q_lora_rank=row.mla.q_lora_rank,
        key_length=row.key_length,
        value_length=row.value_length,
    )


def _ssm(row: CatalogModel) -> SsmFacts | None:
    """As `velollm.models.gguf` reads it: a short convolution has a state of the embedding's width."""
    if row.ssm is None:
        return None
    if row.ssm.kind == "shortconv":
        return SsmFacts(conv_kernel=row.ssm.conv_kernel, inner_size=row.embedding_length, state_size=0, group_count=0)
    return SsmFacts(**row.ssm.model_dump(exclude={"kind"}))


def format_names() -> tuple[str, ...]:
    """Names of all formats, those with most bits first."""
    return tuple(form.name for form in load_formats())
