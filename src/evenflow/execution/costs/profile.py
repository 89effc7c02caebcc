"""Profile files: measured or published step times of one model on one machine, as JSON.

```json
{
  "format": 1,
  "source": "evenflow calibrate",       who measured, how; for published figures where they are
  "machine": "2 CPUs, ...",             what it was measured on
  "date": "2026-11-22",
  "evenflow_version": "0.1.0",          null for figures that evenflow did not measure
  "model": "smollm2",
  "best": "measured",                   or "closed_form": which of the two to use
  "closed_form": {"prefill": {...}, "decodes": [{...}], ...},         null if there is none
  "errors": {"closed_form": {...}, "measured": {...}},      on steps that neither has seen
  "steps": [[[[256, 0]], 0, 0, 0.51], ...]      chunks, decodes, their context tokens, seconds
}
```
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, ValidationError

from evenflow.core.errors import ConfigError
from evenflow.execution.costs.closed_form import (
    ClosedFormCosts,
    DecodeCoefficients,
    PrefillCoefficients,
)
from evenflow.execution.costs.cost_model import CostModel
from evenflow.execution.costs.measured import MeasuredCosts, MeasuredStep
from evenflow.execution.costs.shape import StepShape

Form = Literal["closed_form", "measured"]

_FORMAT = 1
_SUFFIX = ".json"


@dataclass(slots=True, frozen=True, kw_only=True)
class CostProfile:
    """What is known about the step times of a model on a machine.

    Attributes:
        source: who measured it and how, or where it was published.
        machine: what it was measured on.
        date: when, as YYYY-MM-DD.
        evenflow_version: of the engine that was measured; None if it was another one.
        model: the model's name.
        best: which form to use.
        closed_form: the formula, if there is one.
        steps: measured steps that make the tables, if there are any.
        errors: by form, its mean and worst relative error by kind of step, on steps that took no
            part in making it.
    """

    source: str
    machine: str
    date: str
    model: str
    best: Form
    evenflow_version: str | None = None
    closed_form: ClosedFormCosts | None = None
    steps: tuple[MeasuredStep, ...] = ()
    errors: dict[str, dict[str, float]] = field(default_factory=dict)

    def costs(self, form: Form | None = None) -> CostModel:
        """Return the cost model, in the best form unless another one is asked for.

        Raises:
            ConfigError: the profile does not have it in this form.
        """
        form = form or self.best
        if form == "measured":
            return MeasuredCosts(self.steps, origin(self.model, self.machine, self.source))
        if self.closed_form is None:
            raise ConfigError(
                "the profile has no closed form",
                why=f"it holds {len(self.steps)} measured steps",
                fix="Use its measured form",
            )
        return self.closed_form

    def write(self, path: Path) -> None:
        """Write the profile file."""
        content: dict[str, Any] = {
            "format": _FORMAT,
            "source": self.source,
            "machine": self.machine,
            "date": self.date,
            "evenflow_version": self.evenflow_version,
            "model": self.model,
            "best": self.best,
            "closed_form": _coefficients(self.closed_form) if self.closed_form else None,
            "errors": self.errors,
        }
        text = json.dumps(content, indent=2, ensure_ascii=False)
        rows = ",\n    ".join(json.dumps(_row(step)) for step in self.steps)
        path.write_text(f'{text[:-2]},\n  "steps": [\n    {rows}\n  ]\n}}\n', encoding="utf-8")


def origin(model: str, machine: str, source: str) -> str:
    """Return on one line where the figures of a cost model come from."""
    return f"{model} on {machine}, {source}"


def read_profile(path: Path | Traversable) -> CostProfile:
    """Read a profile file.

    Raises:
        ConfigError: it cannot be read, or is not a profile.
    """
    try:
        content = _ProfileFile.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the profile {path} cannot be read", why=str(error)) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ConfigError(
            f"{path} is not a cost profile",
            why=f"{where}: {first['msg']}",
            fix="Write one with `evenflow calibrate`",
        ) from error
    return content.to_profile()


def load_profile(name_or_path: str) -> CostProfile:
    """Read a profile that comes with evenflow, or a file.

    Raises:
        ConfigError: there is none of this name, or the file is no profile.
    """
    folder = files("evenflow.execution.costs") / "profiles"
    known = sorted(
        entry.name.removesuffix(_SUFFIX)
        for entry in folder.iterdir()
        if entry.name.endswith(_SUFFIX)
    )
    if name_or_path in known:
        return read_profile(folder / (name_or_path + _SUFFIX))
    path = Path(name_or_path).expanduser()
    if not path.is_file():
        raise ConfigError(
            f"there is no cost profile {name_or_path!r}",
            why=f"it is neither a file nor one of {', '.join(known)}",
            fix="Write one with `evenflow calibrate`",
        )
    return read_profile(path)


def _coefficients(closed_form: ClosedFormCosts) -> dict[str, Any]:
    """Return the formula without its source, which the profile tells."""
    return {key: value for key, value in asdict(closed_form).items() if key != "source"}


def _row(step: MeasuredStep) -> list[Any]:
    shape = step.shape
    context = shape.num_decode_context_tokens
    return [shape.chunks, shape.num_decodes, context, float(f"{step.seconds:.6g}")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Prefill(_Strict):
    constant_s: NonNegativeFloat
    per_token_s: NonNegativeFloat
    per_square_s: NonNegativeFloat


class _Decode(_Strict):
    constant_s: NonNegativeFloat
    per_context_token_s: NonNegativeFloat
    per_request_s: NonNegativeFloat
    min_batch: int = Field(default=1, ge=1)


class _ClosedForm(_Strict):
    prefill: _Prefill
    decodes: list[_Decode] = Field(min_length=1)
    overhead_s: NonNegativeFloat = 0.0
    overhead_per_context_token_s: NonNegativeFloat = 0.0

    def to_costs(self, source: str) -> ClosedFormCosts:
        decodes = [DecodeCoefficients(**decode.model_dump()) for decode in self.decodes]
        return ClosedFormCosts(
            PrefillCoefficients(**self.prefill.model_dump()),
            tuple(sorted(decodes, key=lambda decode: decode.min_batch)),
            source,
            self.overhead_s,
            self.overhead_per_context_token_s,
        )


_Chunk = tuple[int, NonNegativeInt]
_Step = tuple[list[_Chunk], NonNegativeInt, NonNegativeInt, float]


class _ProfileFile(_Strict):
    format: Literal[1]
    source: str = Field(min_length=1)
    machine: str = Field(min_length=1)
    date: str
    evenflow_version: str | None = None
    model: str
    best: Form
    closed_form: _ClosedForm | None = None
    errors: dict[str, dict[str, float]] = Field(default_factory=dict)
    steps: list[_Step] = Field(default_factory=list)

    def to_profile(self) -> CostProfile:
        where = origin(self.model, self.machine, self.source)
        return CostProfile(
            source=self.source,
            machine=self.machine,
            date=self.date,
            evenflow_version=self.evenflow_version,
            model=self.model,
            best=self.best,
            closed_form=self.closed_form.to_costs(where) if self.closed_form else None,
            errors=self.errors,
            steps=tuple(
                MeasuredStep(StepShape(tuple(chunks), num_decodes, context), seconds)
                for chunks, num_decodes, context, seconds in self.steps
            ),
        )
