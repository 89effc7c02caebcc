"""The forms in which models write calls, as data."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(slots=True, frozen=True, kw_only=True)
class ToolFormat:
    """How a list of calls is written: `prefix call separator call ... suffix`.

    A call is `{"name": ..., <arguments_key>: {...}}`. A reader skips whitespace between the parts.

    Attributes:
        name: what `--tool-call-parser` takes.
        mark: begins calls anywhere in a message.
        after_mark: follows the mark, before the first call.
        joiner: between two calls; "" if each call has its own mark.
        closer: after the last call; "" if nothing is.
        is_bare: a message that begins with a call needs no mark.
        arguments_key: the name of the arguments in a call.
        prefix: what is written before the first call.
        separator: what is written between calls.
        suffix: what is written after the last call.
        id_length: the model's template takes ids of just so many letters and digits; None: any.
        one_call_per_turn: the model's template refuses a message with several calls.
    """

    name: str
    mark: str
    after_mark: str = ""
    joiner: str = ""
    closer: str = ""
    is_bare: bool = False
    arguments_key: str = "arguments"
    prefix: str
    separator: str
    suffix: str
    id_length: int | None = None
    one_call_per_turn: bool = False

    def write_call(self, name: str, arguments: Mapping[str, object]) -> str:
        """Write one call, without what stands around it."""
        return json.dumps({"name": name, self.arguments_key: arguments}, ensure_ascii=False)

    def write(self, calls: Iterable[str]) -> str:
        """Write calls as a model would."""
        return self.prefix + self.separator.join(calls) + self.suffix


HERMES = ToolFormat(
    name="hermes",
    mark="<tool_call>",
    closer="</tool_call>",
    prefix="<tool_call>\n",
    separator="\n</tool_call>\n<tool_call>\n",
    suffix="\n</tool_call>",
)
LLAMA3_JSON = ToolFormat(
    name="llama3_json",
    mark="<|python_tag|>",
    joiner=";",
    is_bare=True,
    arguments_key="parameters",
    prefix="",
    separator="; ",
    suffix="",
    one_call_per_turn=True,
)
MISTRAL = ToolFormat(
    name="mistral",
    mark="[TOOL_CALLS]",
    after_mark="[",
    joiner=",",
    closer="]",
    prefix="[TOOL_CALLS][",
    separator=", ",
    suffix="]",
    id_length=9,
)

FORMATS: Mapping[str, ToolFormat] = MappingProxyType(
    {form.name: form for form in (HERMES, LLAMA3_JSON, MISTRAL)}
)


def detect_format(template_source: str) -> str | None:
    """Name the form that a chat template teaches its model; None if it teaches none we know."""
    if "tools" not in template_source:
        return None
    if MISTRAL.mark in template_source:
        return MISTRAL.name
    # The same mark with XML inside belongs to other models; theirs has no quoted key.
    if HERMES.mark in template_source and '"arguments' in template_source:
        return HERMES.name
    if "<|start_header_id|>" in template_source and '"parameters' in template_source:
        return LLAMA3_JSON.name
    return None
