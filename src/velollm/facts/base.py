"""What all facts are made of: frozen dataclasses, which pydantic checks when they come from outside.

Pydantic is imported where something is read or written, and not before: that takes a third of the time that a whole
`velollm estimate` of a file may take.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, dataclass_transform

if TYPE_CHECKING:
    from pydantic import TypeAdapter

_NO_CHANGES: Mapping[str, Any] = {}
_ADAPTERS: dict[type[Any], TypeAdapter[Any]] = {}


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(field,))
class Frozen:
    """Base of all facts: immutable, and no field that is not declared.

    Code that makes facts is checked by its types; `model_validate` is for what comes from files and tools.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True, kw_only=True)(cls)

    @classmethod
    def model_validate(cls, data: Any) -> Self:
        """Facts from a mapping of their fields. Raises `ValueError` that names the field."""
        found: Self = _adapter(cls).validate_python(data)
        return found

    @classmethod
    def model_validate_json(cls, text: str | bytes) -> Self:
        """Facts from a JSON object. Raises `ValueError`."""
        found: Self = _adapter(cls).validate_json(text)
        return found

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """Names of the fields, in their order."""
        return tuple(item.name for item in dataclasses.fields(cls))  # type: ignore[arg-type]

    def model_copy(self, *, update: Mapping[str, Any] = _NO_CHANGES) -> Self:
        """The same facts with other values in some fields, which are not checked."""
        return dataclasses.replace(self, **update)  # type: ignore[type-var]

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
        found: dict[str, Any] = _adapter(type(self)).dump_python(
            self, mode=mode, exclude=set(exclude), exclude_none=exclude_none, exclude_defaults=exclude_defaults
        )
        return found

    def model_dump_json(self) -> str:
        """The fields as one line of JSON."""
        return _adapter(type(self)).dump_json(self).decode()


def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    """Pydantic's checker of one kind of facts, made when it is first used: making all takes 0.1 s."""
    found = _ADAPTERS.get(kind)
    if found is None:
        from pydantic import TypeAdapter

        found = _ADAPTERS[kind] = TypeAdapter(kind)
    return found
