"""Layers default < file < environment < flag, and remembers where each value came from."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import yaml
from pydantic import ValidationError

from evenflow.config.area import Area, Option, options_of
from evenflow.config.root import AREAS, EvenflowConfig
from evenflow.core.errors import ConfigError

PREFIX = "EVENFLOW_"
FILE_VARIABLE = "EVENFLOW_CONFIG"
_HIDDEN = "**********"
_SHOW = "`evenflow config show` lists every setting"


class Layer(StrEnum):
    """A source of values; a later one wins over an earlier one."""

    DEFAULT = "default"
    FILE = "file"
    ENVIRONMENT = "environment"
    FLAG = "flag"


@dataclass(slots=True, frozen=True)
class Origin:
    """Where a value came from.

    Attributes:
        layer: the kind of source.
        place: the file's path, the variable or the flag; empty for a default.
    """

    layer: Layer
    place: str = ""

    def __str__(self) -> str:
        return f"{self.layer} {self.place}".rstrip()


DEFAULT = Origin(Layer.DEFAULT)


@dataclass(slots=True, frozen=True)
class Loaded:
    """A configuration in force.

    Attributes:
        config: the values.
        origins: by name of the setting, where its value came from.
    """

    config: EvenflowConfig
    origins: Mapping[str, Origin]

    def value(self, option: Option) -> object:
        """Return the value of one setting."""
        return getattr(getattr(self.config, option.area.table), option.name)


@dataclass(slots=True, frozen=True)
class _Given:
    """A value as somebody wrote it."""

    value: object
    origin: Origin

    def quote(self, option: Option) -> str:
        """Say in the notation of its source what was written, for an error message."""
        place = self.origin.place
        value = _HIDDEN if option.is_secret else self.value
        if self.origin.layer is Layer.FILE:
            return f"the file {place} says {option.name} = {value!r}"
        speaker = "the environment" if self.origin.layer is Layer.ENVIRONMENT else "a flag"
        return f"{speaker} says {place}={value}"


def load_config(
    flags: Mapping[str, object] | None = None,
    *,
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Loaded:
    """Read all layers and check the result.

    Args:
        flags: values by name of the setting (`max_num_seqs`); these win over everything else.
        file: TOML or YAML file with a table per area; None means the one that EVENFLOW_CONFIG
            names, if it names one.
        environ: the environment variables; None means those of this process.

    Raises:
        ConfigError: a key is unknown, a value is out of its limits, values contradict each other,
            or the file cannot be read.
    """
    environ = os.environ if environ is None else environ
    if file is None and FILE_VARIABLE in environ:
        file = Path(environ[FILE_VARIABLE])
    given = _from_file(file.expanduser()) if file else {}
    given |= _from_environment(environ)
    given |= _from_flags(flags or {})
    areas = {area.table: _build(area, given) for area in AREAS}
    origins = {
        option.name: given[option.name].origin if option.name in given else DEFAULT
        for option in options_of(*AREAS)
    }
    return Loaded(EvenflowConfig.model_validate(areas), origins)


def _from_flags(flags: Mapping[str, object]) -> dict[str, _Given]:
    options = {option.name: option for option in options_of(*AREAS)}
    for name in flags:
        _require_known(name, options, "a flag or an argument")
    return {
        name: _Given(value, Origin(Layer.FLAG, options[name].flag)) for name, value in flags.items()
    }


def _from_environment(environ: Mapping[str, str]) -> dict[str, _Given]:
    options = {option.variable: option for option in options_of(*AREAS)}
    given = {}
    for variable, value in environ.items():
        if not variable.startswith(PREFIX) or variable == FILE_VARIABLE:
            continue
        _require_known(variable, [*options, FILE_VARIABLE], "the environment")
        given[options[variable].name] = _Given(value, Origin(Layer.ENVIRONMENT, variable))
    return given


def _from_file(path: Path) -> dict[str, _Given]:
    tables = {area.table: area for area in AREAS}
    homes = {option.name: option.area.table for option in options_of(*AREAS)}
    given = {}
    for table, settings in _read_mapping(path).items():
        if table in homes and not isinstance(settings, Mapping):
            raise ConfigError(
                f"{table} in {path} is outside its table",
                why=f"it belongs under [{homes[table]}]",
                fix=f"Put it there, or use {Option(tables[homes[table]], table).flag}",
            )
        _require_known(table, tables, str(path), noun="table")
        if not isinstance(settings, Mapping):
            raise ConfigError(
                f"{table} in {path} must be a table of settings", why=f"it is {settings!r}"
            )
        for name, value in settings.items():
            _require_known(name, homes, f"table {table} of {path}")
            if homes[name] != table:
                raise ConfigError(
                    f"{name} in {path} is in the wrong table",
                    why=f"it is in {table}",
                    fix=f"Move it to {homes[name]}",
                )
            given[name] = _Given(value, Origin(Layer.FILE, str(path)))
    return given


def _read_mapping(path: Path) -> Mapping[str, object]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".toml":
            content = tomllib.loads(text)
        elif path.suffix in (".yaml", ".yml"):
            content = yaml.safe_load(text) or {}
        else:
            raise ConfigError(
                f"The configuration file {path} has an unknown format",
                why=f"its name ends in {path.suffix!r}",
                fix="Use .toml, .yaml or .yml",
            )
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"The configuration file {path} cannot be read", why=" ".join(str(error).split())
        ) from error
    if not isinstance(content, Mapping):
        raise ConfigError(f"The configuration file {path} must hold tables", why="it holds a value")
    return content


def _require_known(
    name: object, known: Iterable[str], place: str, *, noun: str = "setting"
) -> None:
    names = list(known)
    if name in names:
        return
    close = difflib.get_close_matches(str(name), names, cutoff=0.8)
    raise ConfigError(
        f"There is no {noun} {name}",
        why=f"it comes from {place}",
        fix=f"Perhaps {' or '.join(close)} is meant" if close else _SHOW,
    )


def _build(area: type[Area], given: Mapping[str, _Given]) -> Area:
    mine = {option.name: given[option.name] for option in options_of(area) if option.name in given}
    try:
        return area.model_validate({name: entry.value for name, entry in mine.items()})
    except ValidationError as error:
        wrong = [str(problem["loc"][0]) for problem in error.errors()]
        options = [Option(area, name) for name in dict.fromkeys(wrong)]
        raise ConfigError(
            "; ".join(f"{option.name} must be {option.limits}" for option in options),
            why="; ".join(mine[option.name].quote(option) for option in options),
            fix="; ".join(f"{option.name} is {option.default} by default" for option in options),
        ) from None
    except ConfigError as error:
        quotes = "; ".join(entry.quote(Option(area, name)) for name, entry in mine.items())
        raise ConfigError(error.what, why=f"{error.why} ({quotes})", fix=error.fix) from None
