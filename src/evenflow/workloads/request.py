"""One request of a workload: what is sent, how much is asked for, when, and for whom.

Prompts are described before they are written. A prompt is a list of segments, each a number of
tokens of a named endless text; two prompts that begin with the same segments begin with the same
tokens. A simulator needs no more than that to know what a prefix cache would find, and the load
client lets a vocabulary write the text (`text.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

Message = Mapping[str, Any]


class Segment(NamedTuple):
    """The first `num_tokens` tokens of the text called `key`."""

    key: str
    num_tokens: int


@dataclass(slots=True, frozen=True, kw_only=True)
class WorkloadRequest:
    """One request.

    A request without prompt, messages and segments has a length and no content; `text.py` gives it
    a text that no other request shares.

    Attributes:
        num_prompt_tokens: length of the prompt, as well as it is known before a server counts it.
        num_output_tokens: length of the answer that is asked for.
        arrival_s: when it is due, in seconds from the start of the workload. Later requests of a
            session come no earlier than this, and wait for the one before in any case.
        tenant: for whom it is, "" for nobody in particular.
        priority: lower is served first, by policies that look at it.
        session: requests of one session are sent one after the other, each when the answer to the
            one before is complete; None stands alone.
        turn: its place in its session, from 0.
        continues: the conversation of the session so far is sent before this prompt, and
            `num_prompt_tokens` counts the new part only.
        think_time_s: pause between the answer before and this request.
        tool_time_s: how much of that pause a tool call took.
        segments: what the prompt is made of.
        prompt: the prompt itself, as text or token ids.
        messages: the prompt as a chat.
    """

    num_prompt_tokens: int
    num_output_tokens: int
    arrival_s: float = 0.0
    tenant: str = ""
    priority: int = 0
    session: str | None = None
    turn: int = 0
    continues: bool = False
    think_time_s: float = 0.0
    tool_time_s: float = 0.0
    segments: tuple[Segment, ...] = ()
    prompt: str | tuple[int, ...] | None = None
    messages: tuple[Message, ...] | None = None
