"""What all facts are made of: frozen records of plain values, checked when they come from outside.

Done by hand, in pydantic's words, because importing pydantic takes longer than a whole `velollm estimate` may (0.1 s).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from types import MappingProxyType, NoneType, UnionType
from typing import Any, ClassVar, Literal, NoReturn, Self, Union, dataclass_transform, get_args, get_origin

_Reader = Callable[[Any], Any]
_REQUIRED = object()
NOTHING: Mapping[str, Any] = MappingProxyType({})
"""Default of a field that is a mapping: nothing in it."""


class FactsError(ValueError):
    """A value is none of its field's type, or a field is missing or unknown. Names the field."""


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Frozen:
    """Base of all facts: immutable, and no field that is not declared.

    Fields are plain values, tuples, mappings, and other facts, or one of several of these. Lists become tuples, dicts
    facts, and whole numbers fractions where a field wants that; nothing else is changed to fit.
    """

    model_fields: ClassVar[Mapping[str, Any]] = NOTHING
    """The default of each field; for one that must be given, a value of no meaning."""

    _readers: ClassVar[Mapping[str, _Reader] | None] = None

    def __init_subclass__(cls) -> None:
        own = cls.__annotations__ if "__annotations__" in cls.__dict__ else ()
        declared = {name: cls.__dict__.get(name, _REQUIRED) for name in own if name[0] != "_"}
        cls.model_fields, cls._readers = {**cls.model_fields, **declared}, None

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(_read_fields(type(self), values))

    @classmethod
    def model_validate(cls, data: Any) -> Self:
        """Facts from a mapping of their fields. Raises `FactsError`."""
        found = _facts_reader(cls)(data)
        assert isinstance(found, cls)
        return found

    @classmethod
    def model_validate_json(cls, text: str | bytes) -> Self:
        """Facts from a JSON object. Raises `ValueError`."""
        return cls.model_validate(json.loads(text))

    @classmethod
    def model_construct(cls, **values: Any) -> Self:
        """Facts of values that are known to have the right types: nothing is checked."""
        new = object.__new__(cls)
        new.__dict__.update({name: _fresh(default) for name, default in cls.model_fields.items()}, **values)
        return new

    def model_copy(self, *, update: Mapping[str, Any] = NOTHING) -> Self:
        """The same facts with other values in some fields, which are not checked."""
        new = object.__new__(type(self))
        new.__dict__.update(self.__dict__, **update)
        return new

    def model_dump(
        self,
        *,
        mode: Literal["python", "json"] = "python",
        exclude: Collection[str] = (),
        exclude_none: bool = False,
        exclude_defaults: bool = False,
    ) -> dict[str, Any]:
        """The fields as plain values, those within fields too; in the mode ``json`` tuples are lists.

        ``exclude``: fields to leave out, of these facts alone.
        """

        def plain(value: Any) -> Any:
            if isinstance(value, Frozen):
                return fields(value, ())
            if isinstance(value, Mapping):
                return {key: plain(item) for key, item in value.items()}
            if isinstance(value, tuple | list):
                items = [plain(item) for item in value]
                return items if mode == "json" else tuple(items)
            return value

        def fields(facts: Frozen, left_out: Collection[str]) -> dict[str, Any]:
            return {
                name: plain(value)
                for name, value in facts
                if name not in left_out
                and not (exclude_none and value is None)
                and not (exclude_defaults and value == facts.model_fields[name])
            }

        return fields(self, exclude)

    def model_dump_json(self) -> str:
        """The fields as one line of JSON."""
        return json.dumps(self.model_dump(mode="json"), separators=(",", ":"), ensure_ascii=False)

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return ((name, self.__dict__[name]) for name in self.model_fields)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash((type(self), tuple(self.__dict__.values())))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self)})"


def _fresh(default: Any) -> Any:
    return {} if default is NOTHING else default


def _read_fields(cls: type[Frozen], values: Mapping[str, Any]) -> dict[str, Any]:
    """The value of every field, checked. Raises `FactsError`."""
    readers = cls.__dict__["_readers"]
    if readers is None:
        readers = cls._readers = _readers_of(cls)
    found: dict[str, Any] = {}
    for name, default in cls.model_fields.items():
        if name not in values:
            if default is _REQUIRED:
                raise FactsError(f"{cls.__name__}.{name} is missing")
            found[name] = _fresh(default)
            continue
        try:
            found[name] = readers[name](values[name])
        except FactsError as error:
            raise FactsError(f"{cls.__name__}.{name}: {error}") from None
    if len(values) != len(values.keys() & found.keys()):
        raise FactsError(f"{cls.__name__} has no field {', '.join(map(str, values.keys() - found.keys()))}")
    return found


def _readers_of(cls: type[Frozen]) -> dict[str, _Reader]:
    from typing import get_type_hints

    hints = get_type_hints(cls)
    return {name: _reader(hints[name]) for name in cls.model_fields}


def _reader(kind: Any) -> _Reader:
    """How a value of that type is read."""
    origin, parts = get_origin(kind), get_args(kind)
    if kind in _PLAIN:
        return _PLAIN[kind]
    if origin in (Union, UnionType):
        return _choice_reader(parts)
    if origin is Literal:
        return _literal_reader(parts)
    if origin is tuple:
        return _tuple_reader(parts)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping_reader(_reader(parts[0]), _reader(parts[1]))
    if isinstance(kind, type) and issubclass(kind, Frozen):
        return _facts_reader(kind)
    raise TypeError(f"no fact is of the type {kind}")


def _wrong(value: object, wanted: str) -> FactsError:
    return FactsError(f"{wanted} is wanted, not {value!r:.80}")


def _read_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise _wrong(value, "text")


def _read_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise _wrong(value, "true or false")


def _read_int(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise _wrong(value, "a whole number")


def _read_float(value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise _wrong(value, "a number")


def _read_none(value: Any) -> None:
    if value is not None:
        raise _wrong(value, "nothing")


_PLAIN: dict[Any, _Reader] = {
    str: _read_text,
    bool: _read_bool,
    int: _read_int,
    float: _read_float,
    NoneType: _read_none,
    object: lambda value: value,
}


def _choice_reader(kinds: tuple[Any, ...]) -> _Reader:
    readers = [_reader(kind) for kind in kinds if kind is not NoneType]
    optional = NoneType in kinds

    def read(value: Any) -> Any:
        if optional and value is None:
            return None
        error: FactsError | None = None
        for reader in readers:
            try:
                return reader(value)
            except FactsError as caught:
                error = error or caught
        raise error or _wrong(value, "nothing")

    return read


def _literal_reader(values: tuple[Any, ...]) -> _Reader:
    def read(value: Any) -> Any:
        if value in values:
            return value
        raise _wrong(value, f"one of {', '.join(map(repr, values))}")

    return read


def _tuple_reader(kinds: tuple[Any, ...]) -> _Reader:
    many = len(kinds) == 2 and kinds[1] is Ellipsis
    readers = [_reader(kind) for kind in kinds[:1] if many] or [_reader(kind) for kind in kinds]

    def read(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, tuple | list):
            raise _wrong(value, "a list")
        if many:
            return tuple(map(readers[0], value))
        if len(value) != len(readers):
            raise _wrong(value, f"a list of {len(readers)}")
        return tuple(reader(item) for reader, item in zip(readers, value, strict=True))

    return read


def _mapping_reader(key: _Reader, item: _Reader) -> _Reader:
    def read(value: Any) -> dict[Any, Any]:
        if not isinstance(value, Mapping):
            raise _wrong(value, "a mapping")
        return {key(name): item(held) for name, held in value.items()}

    return read


def _facts_reader(cls: type[Frozen]) -> _Reader:
    def read(value: Any) -> Frozen:
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise _wrong(value, f"a mapping of {cls.__name__}'s fields")
        new = object.__new__(cls)
        new.__dict__.update(_read_fields(cls, value))
        return new

    return read
