"""What an area of settings is, and how one setting describes itself to flags, docs and errors.

An area is a frozen pydantic model. The docstring under a field is its description, so the text in
`--help`, in `docs/configuration.md` and in the source is one text.
"""

from __future__ import annotations

import types
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel, ConfigDict, SecretStr, ValidationInfo, field_validator
from pydantic.fields import FieldInfo


class Area(BaseModel):
    """Base of every area: frozen, no unknown keys, values checked wherever they come from.

    Attributes:
        table: the area's name, and the table its settings are in when they come from a file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    table: ClassVar[str]

    @field_validator("*", mode="before")
    @classmethod
    def _read_plainly(cls, value: object, info: ValidationInfo) -> object:
        """Read `none` as None where None is allowed, and refuse a truth value for a number.

        TOML, environment variables and flags have no null; Python takes True for 1.
        """
        option = Option(cls, str(info.field_name))
        if isinstance(value, bool) and not option.is_bool:
            raise ValueError("a truth value is not accepted")
        return None if value == "none" and option.is_optional else value


@dataclass(slots=True, frozen=True)
class Option:
    """One setting as the user meets it.

    Attributes:
        area: the model it is a field of.
        name: the field's name.
    """

    area: type[Area]
    name: str

    @property
    def flag(self) -> str:
        """Its command-line flag."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return "EVENFLOW_" + self.name.upper()

    @property
    def description(self) -> str:
        """What it means, with its unit, on one line."""
        return " ".join((self._field.description or "").split())

    @property
    def default(self) -> str:
        """Its default, in words that are the same on every machine."""
        if "default" in self._words:
            return self._words["default"]
        value = self._field.default
        return str(value).lower() if value is None or isinstance(value, bool) else str(value)

    @property
    def is_optional(self) -> bool:
        """Whether it may be none."""
        return type(None) in self._types

    @property
    def is_bool(self) -> bool:
        """Whether it is on or off."""
        return bool in self._types

    @property
    def is_secret(self) -> bool:
        """Whether nobody may read its value in messages."""
        return SecretStr in self._types

    @property
    def choices(self) -> tuple[str, ...]:
        """The only values it takes, or nothing if there is no such list."""
        return tuple(
            str(choice)
            for kind in self._types
            if get_origin(kind) is Literal
            for choice in get_args(kind)
        )

    @property
    def kind(self) -> str:
        """The kind of value, as shown after the flag."""
        kinds = {int: "INTEGER", float: "NUMBER", bool: "BOOLEAN", Path: "PATH"}
        return next((kinds[kind] for kind in kinds if kind in self._types), "TEXT")

    @property
    def limits(self) -> str:
        """The values it takes, in words, for example `a whole number, at least 1`."""
        if "limits" in self._words:
            return self._words["limits"]
        kinds = {
            "INTEGER": "a whole number",
            "NUMBER": "a number",
            "TEXT": "text",
            "BOOLEAN": "true or false",
            "PATH": "a path",
        }
        parts = ["one of " + ", ".join(self.choices) if self.choices else kinds[self.kind]]
        for bound in self._field.metadata:
            if isinstance(bound, annotated_types.Ge):
                parts.append(f"at least {bound.ge}")
            if isinstance(bound, annotated_types.Gt):
                parts.append(f"above {bound.gt}")
            if isinstance(bound, annotated_types.Le):
                parts.append(f"at most {bound.le}")
            if isinstance(bound, annotated_types.MinLen):
                parts[0] += " that is not empty"
        return ", ".join(parts) + (", or none" if self.is_optional else "")

    @property
    def _field(self) -> FieldInfo:
        return self.area.model_fields[self.name]

    @property
    def _words(self) -> dict[str, str]:
        """Words that replace what the type alone would say."""
        extra = self._field.json_schema_extra
        return {key: str(text) for key, text in extra.items()} if isinstance(extra, dict) else {}

    @property
    def _types(self) -> tuple[object, ...]:
        annotation = self._field.annotation
        is_union = get_origin(annotation) in (Union, types.UnionType)
        return get_args(annotation) if is_union else (annotation,)


def options_of(*areas: type[Area]) -> list[Option]:
    """Return every setting of `areas` in the order in which the source has them."""
    return [Option(area, name) for area in areas for name in area.model_fields]
