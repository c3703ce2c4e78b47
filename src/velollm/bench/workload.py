"""What is asked of a server: kinds of prompts as data, and prompts made from them."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import islice
from pathlib import Path
from string import Template
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from velollm.config import data_dir
from velollm.errors import UsageError, VeloError

USERS = 4
"""Users of the part with several at once; the figures `aggregate_4` and `worst_ttft_4` are named after it."""

PROMPTS_PER_ROUND = 8
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_WORD = re.compile(r"\S+\s*|\s+")
_MAX_FILE_BYTES = 1 << 20
_BUILT_IN = frozenset({"opening", "serial", "n"})
_TOLERANCE = 0.02
_MAX_COUNTS = 7

# One opens each prompt. Neighbours in this list share no first letter, so that even a tokenizer of single
# letters finds no common beginning between prompts that follow one another.
_OPENING_WORDS = (
    "Amber Birch Cedar Dune Ember Falcon Garnet Heron Indigo Juniper Kestrel Lantern Maple Nettle Orchid "
    "Pebble Quartz Raven Saffron Thistle Umber Violet Willow Xylem Yarrow Zephyr Acorn Bramble Clover Dahlia "
    "Elm Fern Granite Hazel Iris Jasper Kelp Linden Marble Nutmeg Oyster Poppy Quill Rowan Sorrel Tansy Ursine "
    "Velvet Walnut Xenon Yew Zinnia Alder Basalt Copper Damson Eider Flint Ginger Heather Ivory Jade Kiln Larch "
    "Moss Nickel Onyx Plover Quince Russet Slate Teal Upland Vetch Wren Yonder"
)
_OPENINGS = tuple(_OPENING_WORDS.split())


class Workload(BaseModel):
    """One kind of request, as `benchmarks/workloads/*.yaml` says it.

    ``prompt_tokens`` and ``decode_tokens`` are the sizes wanted for one user, ``aggregate_*`` those for each
    of `USERS` users at once; ``rounds`` the most rounds that are useful. ``opening`` starts every prompt
    (its first word is another in each), ``notes`` and ``repeated`` are pieces of which the body is made, ``ask``
    ends it. ``repeat_ratio``: the share of the body that is made of ``repeated``, text that the answer has to
    say again. ``${word}`` stands for an entry of ``words`` (drawn anew in each piece) or ``prompt_words``
    (drawn once a prompt); with a digit behind its name (``${word2}``) it stands for another entry of the same list.
    ``${opening}``, ``${serial}`` and ``${n}`` are given by the program.

    ``prompts`` are a user's own and need none of these: they are asked in turn, each behind one line that makes it new
    to the server. ``turns`` above 1: a conversation, in which each turn sends all that was said before and one of
    ``follow_ups``. ``json_schema``: answers have to keep to it. With several users, ``arrival_s`` is the mean time
    between two of them (exponential, so that arrivals are Poisson; 0: all at once), and ``mix`` names the workloads
    that they ask in turn. ``beside``: what else goes on while one user asks.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    summary: str
    prompt_tokens: int = Field(ge=16, le=1 << 20)
    decode_tokens: int = Field(ge=8, le=1 << 16)
    aggregate_prompt_tokens: int = Field(ge=16, le=1 << 20)
    aggregate_decode_tokens: int = Field(ge=8, le=1 << 16)
    rounds: int = Field(ge=5, le=100)
    repeat_ratio: float = Field(ge=0, le=1)
    opening: str = Field(default="", pattern=r"^(\$\{opening\}|$)")
    ask: str = ""
    notes: list[str] = Field(default_factory=list)
    repeated_opening: str = ""
    repeated: list[str] = Field(default_factory=list)
    prompt_words: dict[str, list[str]] = Field(default_factory=dict)
    words: dict[str, list[str]] = Field(default_factory=dict)
    prompts: list[str] = Field(default_factory=list)
    turns: int = Field(default=1, ge=1, le=64)
    follow_ups: list[str] = Field(default_factory=list)
    json_schema: dict[str, object] | None = None
    arrival_s: float = Field(default=0.0, ge=0, le=60)
    mix: list[str] = Field(default_factory=list)
    beside: Literal["titles", "busy process"] | None = None

    @model_validator(mode="after")
    def _whole(self) -> Workload:
        missing = [name for name in ("opening", "ask", "notes") if not getattr(self, name)]
        if missing and not self.prompts:
            raise ValueError(f"it needs {', '.join(missing)}, or prompts of your own under 'prompts'")
        if self.turns > 1 and not self.follow_ups:
            raise ValueError("turns needs texts under 'follow_ups'")
        if self.repeat_ratio > 0 and not self.repeated:
            raise ValueError("repeat_ratio needs pieces under 'repeated'")
        lists = {**self.words, **self.prompt_words}
        if empty := sorted(name for name, entries in lists.items() if not entries):
            raise ValueError(f"no entries for: {', '.join(empty)}")
        pieces = (self.opening, self.ask, self.repeated_opening, *self.notes, *self.repeated, *self.follow_ups)
        used = {name for piece in pieces for name in Template(piece).get_identifiers()}
        if unknown := sorted(name for name in used - _BUILT_IN if _list_name(name, lists) is None):
            raise ValueError(f"unknown words: {', '.join(unknown)}")
        return self


def _list_name(word: str, lists: Collection[str]) -> str | None:
    """The list that a word of a piece is drawn from: its own, or without the digits at its end."""
    bare = word.rstrip("0123456789")
    return word if word in lists else bare if bare in lists else None


def workload_names() -> tuple[str, ...]:
    """Names of the workloads that ship with the program."""
    return tuple(sorted(path.stem for path in data_dir("workloads").glob("*.yaml")))


def load_workload(name: str) -> Workload:
    """The workload of that name, or in the file of that path (`.yaml`, `.yml` or `.json`).

    Raises:
        VeloError: there is none of that name, or its file is damaged.
    """
    if Path(name).suffix in (".yaml", ".yml", ".json") and Path(name).is_file():
        return read_workload(Path(name))
    names = workload_names()
    if not _NAME.fullmatch(name) or name not in names:
        raise UsageError(f"there is no workload '{name}'", f"choose one of: {', '.join(names)}, or name a YAML file")
    return read_workload(data_dir("workloads") / f"{name}.yaml")


def read_workload(path: Path) -> Workload:
    """The workload in one file; its name is the file's.

    Raises:
        VeloError: the file cannot be read, or does not say what a workload needs.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise VeloError(f"cannot read the workload {path}: {error.strerror}", "check the path") from error
    if len(data) > _MAX_FILE_BYTES:
        raise VeloError(f"the workload {path} is too large", "a workload holds text pieces, not whole documents")
    return parse_workload(path.stem, data)


def parse_workload(name: str, text: str | bytes) -> Workload:
    """A workload from the text of its file.

    Raises:
        VeloError: the text is no workload; the message says where.
    """
    hint = "compare it with the files in benchmarks/workloads, or install VeloLLM again"
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        first = str(error).splitlines()[0] if str(error) else "unreadable"
        raise VeloError(f"the workload '{name}' is damaged: {first}", hint) from error
    if not isinstance(data, dict):
        raise VeloError(f"the workload '{name}' is damaged: it holds no fields", hint)
    try:
        return Workload.model_validate({**data, "name": name})
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise VeloError(f"the workload '{name}' is damaged: {where or 'file'}: {problem['msg']}", hint) from error


def make_prompt(
    workload: Workload,
    round_index: int,
    index: int,
    target_tokens: int,
    count_tokens: Callable[[str], int],
    *,
    seed: int = 0,
) -> str:
    """The prompt of one user (``index``) in one round, close to ``target_tokens`` long.

    The same arguments give the same text, so both arms of a round get the same. Prompts of other rounds
    and users differ from the first word on, so no server finds a prefix of one in its cache. The length
    comes within 2% of the target, or as near as whole words allow after a few counts.
    """
    writer = _Writer(workload, round_index, index, seed)
    if workload.prompts:
        return writer.own()
    fixed = count_tokens(writer.text(0))
    if fixed < target_tokens:
        return _fit(writer.text, fixed, target_tokens, count_tokens)
    words = _WORD.findall(writer.text(0))
    return _fit(lambda count: "".join(words[: max(count, 1)]), 0, target_tokens, count_tokens, len(words))


class _Writer:
    """One prompt at any length: ``text(n)`` has a body of n words."""

    def __init__(self, workload: Workload, round_index: int, index: int, seed: int) -> None:
        self._workload = workload
        self._random = random.Random(f"{workload.name}/{seed}/{round_index}/{index}")
        prompts = workload.prompts
        self._prompt = prompts[(max(round_index, 0) + index) % len(prompts)] if prompts else ""
        number = (round_index + 2) * PROMPTS_PER_ROUND + index + seed * 11
        pieces = (workload.opening, workload.ask, workload.repeated_opening, *workload.notes, *workload.repeated)
        self._fixed = _draw_words(" ".join(pieces), workload.prompt_words, self._random)
        self._fixed["opening"] = _OPENINGS[number % len(_OPENINGS)]
        self._fixed["serial"] = str(self._random.randrange(1000, 10000))
        self._notes, self._repeated = _Words(self._fill(workload.notes)), _Words(self._fill(workload.repeated))

    def own(self) -> str:
        """One of the user's prompts, behind a line that no other prompt has."""
        return f"({self._fixed['opening']} {self._fixed['serial']})\n\n{self._prompt}"

    def text(self, body_words: int) -> str:
        workload = self._workload
        again = round(body_words * workload.repeat_ratio)
        parts = [self._put(workload.opening), "\n\n", self._notes.first(body_words - again)]
        if again:
            parts += ["\n\n", self._put(workload.repeated_opening), self._repeated.first(again)]
        return "".join([*parts, "\n", self._put(workload.ask)])

    def _fill(self, pieces: list[str]) -> Iterator[str]:
        # A stream of its own for each kind of piece: else a longer body would change the words before it.
        draw = random.Random(self._random.randrange(1 << 62))
        while pieces:
            for piece in draw.sample(pieces, len(pieces)):
                drawn = _draw_words(piece, self._workload.words, draw)
                yield self._put(piece, {**drawn, "n": str(draw.randrange(100, 1000))})
                yield "" if piece.endswith("\n") else " "

    def _put(self, piece: str, drawn: Mapping[str, str] | None = None) -> str:
        return Template(piece).substitute({"n": "1", **(drawn or {}), **self._fixed})


def make_follow_up(workload: Workload, round_index: int, turn: int, *, seed: int = 0) -> str:
    """What the user says in one later turn of a conversation; the same for every arm."""
    draw = random.Random(f"{workload.name}/{seed}/{round_index}/follow-up {turn}")
    piece = workload.follow_ups[(turn + round_index) % len(workload.follow_ups)]
    drawn = _draw_words(piece, {**workload.words, **workload.prompt_words}, draw)
    return Template(piece).safe_substitute({"n": str(draw.randrange(100, 1000)), **drawn})


def _draw_words(piece: str, lists: Mapping[str, list[str]], draw: random.Random) -> dict[str, str]:
    """An entry for each word in a piece; words of one list get different entries as far as it has them."""
    wanted: dict[str, list[str]] = {}
    for word in Template(piece).get_identifiers():
        if (name := _list_name(word, lists)) is not None:
            wanted.setdefault(name, []).append(word)
    drawn: dict[str, str] = {}
    for name, words in wanted.items():
        entries = draw.sample(lists[name], len(lists[name]))
        drawn.update((word, entries[place % len(entries)]) for place, word in enumerate(words))
    return drawn


class _Words:
    """The first words of an endless text, written only as far as they are asked for."""

    def __init__(self, pieces: Iterator[str]) -> None:
        self._source = (word for piece in pieces for word in _WORD.findall(piece))
        self._words: list[str] = []

    def first(self, count: int) -> str:
        self._words.extend(islice(self._source, max(count - len(self._words), 0)))
        return "".join(self._words[:count])


def _fit(
    text_of: Callable[[int], str],
    tokens_of_none: int,
    target: int,
    count_tokens: Callable[[str], int],
    most_words: int | None = None,
) -> str:
    """The text whose token count is nearest to the target, found by straight-line interpolation in few counts."""
    low, low_tokens = 0, tokens_of_none
    high: int | None = None
    words = max(1, round((target - tokens_of_none) / 1.5))
    best, best_miss = text_of(0), abs(tokens_of_none - target)
    for _ in range(_MAX_COUNTS):
        words = words if most_words is None else min(words, most_words)
        text = text_of(words)
        tokens = count_tokens(text)
        if abs(tokens - target) < best_miss:
            best, best_miss = text, abs(tokens - target)
        if best_miss <= target * _TOLERANCE:
            return best
        rate = max((tokens - tokens_of_none) / words, 0.05)
        if tokens > target:
            high = words
        else:
            low, low_tokens = words, tokens
        step = low + max(1, round((target - low_tokens) / rate))
        words = step if high is None else min(step, high - 1)
        if words <= low:
            break
    return best
