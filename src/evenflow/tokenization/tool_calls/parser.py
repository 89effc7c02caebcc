"""Reads calls out of a text that arrives in pieces.

             mark, or `{` at the very beginning of a bare format
_read_content ------------------------------------------------> _read_opening
  ^  ^  ^                                                       |          |
  |  |  +------------------- what follows is no call -----------+          | `{`
  |  |                                                                     v
  |  +---------- no sound call: all of it is content ----------------- _read_call
  |                                                                     |     ^
  +-- closer, or something else -- _read_between <---- sound call ------+     |
                                        |                                     |
                                        +------------- joiner and `{` --------+
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable

from evenflow.tokenization.tool_calls.call_json import ObjectEnd, read_call
from evenflow.tokenization.tool_calls.events import (
    ArgumentsDelta,
    ContentDelta,
    ToolCallEvent,
    ToolCallStarted,
)
from evenflow.tokenization.tool_calls.formats import ToolFormat

_HEADER = re.compile(r'\{"name": "([\w-]+)", "(?:arguments|parameters)": ')


class ToolCallParser:
    """Turns the text of one answer into content and calls.

    What was handed out cannot be taken back. A call that may still turn out to be malformed is
    therefore held until it is whole; under a grammar none can, and its arguments stream.

    Args:
        form: how the model writes calls.
        names: functions that may be called; an object that names another is content.
        id_seed: makes the ids of calls; unique for the answer, such as request id and choice.
        max_calls: further calls are dropped.
        is_constrained: a grammar guarantees that every call is sound and written exactly as
            `ToolFormat.write` does.
        calls_only: the grammar has nothing but calls; anything else is a call that the length
            limit cut short before its name, and is dropped.
    """

    def __init__(
        self,
        form: ToolFormat,
        names: frozenset[str],
        id_seed: str,
        *,
        max_calls: int | None = None,
        is_constrained: bool = False,
        calls_only: bool = False,
    ) -> None:
        self._form = form
        self._names = names
        self._id_seed = id_seed
        self._max_calls = max_calls
        self._streams = is_constrained
        self._calls_only = calls_only
        self._held = ""
        self._opening = ""  # what led to the call in `_held`; content if it turns out to be none
        self._object = ObjectEnd()
        self._num_sent = 0  # characters of `_held` that are out as name and arguments
        self._num_calls = 0
        self._has_content = False
        self._is_after_call = False
        self._is_final = False
        self._events: list[ToolCallEvent] = []
        self._read: Callable[[], bool] = self._read_content

    @property
    def num_calls(self) -> int:
        """Calls begun so far; an answer with any has the finish reason `tool_calls`."""
        return self._num_calls

    def push(self, text: str) -> list[ToolCallEvent]:
        """Take more text and return what is sure by now."""
        self._held += text
        while self._read():
            pass
        events, self._events = self._events, []
        return events

    def finish(self) -> list[ToolCallEvent]:
        """Return the rest: the text has ended."""
        self._is_final = True
        return self.push("")

    def _read_content(self) -> bool:
        text = self._held
        mark = self._form.mark
        is_at_start = not self._has_content and not self._num_calls
        if is_at_start and self._form.is_bare and text.lstrip().startswith("{"):
            self._begin_object(len(text) - len(text.lstrip()))
            return True
        at = _find_start(text, mark)
        is_mark = text.startswith(mark, at)
        # Whitespace is held until it is known whether a call follows.
        end = len(text) if self._is_final and not is_mark else len(text[:at].rstrip())
        self._emit_content(text[:end])
        self._held = text[end:]
        if is_mark:
            self._read = self._read_opening
        return is_mark

    def _read_opening(self) -> bool:
        mark = self._form.mark
        end = self._expect(mark, self._form.after_mark, "{")
        if end is None:
            return False
        if end:
            self._begin_object(end - 1)
        else:
            self._reject(self._held.index(mark) + len(mark))
        return True

    def _begin_object(self, at: int) -> None:
        """Read a call next; its brace is `_held[at]`."""
        self._opening, self._held = self._held[:at], self._held[at:]
        self._object = ObjectEnd()
        self._num_sent = 0
        self._read = self._read_call

    def _read_call(self) -> bool:
        is_whole = self._object.find(self._held)
        if self._streams:
            self._stream_call()
        if is_whole is None and not self._is_final:
            return False
        end = len(self._held) if is_whole is None else self._object.position
        if self._num_sent:
            if is_whole is None:  # cut short by the length limit
                self._emit_arguments(self._held[self._num_sent :])
            return self._end_call(end)
        call = read_call(self._held[:end]) if is_whole else None
        if call is None or call[0] not in self._names:
            self._held = self._opening + self._held
            self._reject(len(self._opening) + end)
            return True
        self._emit_call(*call)
        return self._end_call(end)

    def _end_call(self, end: int) -> bool:
        self._held = self._held[end:]
        self._is_after_call = True
        self._read = self._read_between
        return True

    def _reject(self, end: int) -> None:
        """Take what looked like a call for content, up to `_held[end]`."""
        self._emit_content(self._held[:end])
        self._held = self._held[end:]
        self._read = self._read_content

    def _stream_call(self) -> None:
        """Hand out what has come of a call whose form a grammar guarantees."""
        if not self._num_sent:
            header = _HEADER.match(self._held)
            if header is None or header[1] not in self._names:
                return
            self._num_sent = header.end()
            self._emit_call(header[1], "")
        # The last brace of a whole object closes the call, not the arguments.
        end = self._object.position - (1 if self._object.is_whole else 0)
        if end > self._num_sent:
            self._emit_arguments(self._held[self._num_sent : end])
            self._num_sent = end

    def _read_between(self) -> bool:
        form = self._form
        following = self._expect(form.joiner, "{") if form.joiner else 0
        if following == 0 and form.is_bare:
            following = self._expect("{")
        closed = self._expect(form.closer) if form.closer else 0
        if following:
            self._begin_object(following - 1)
        elif following is None or closed is None:
            return False
        else:
            self._held = self._held[closed:]
            self._read = self._read_content
        return True

    def _expect(self, *literals: str) -> int | None:
        """Look for `literals` at the beginning of `_held`, each after optional whitespace.

        Returns:
            Where the last one ends; 0 if something else is there; None if more text must come.
        """
        text = self._held
        at = 0
        for literal in literals:
            while at < len(text) and text[at].isspace():
                at += 1
            found = text[at : at + len(literal)]
            if found != literal:
                return None if literal.startswith(found) and not self._is_final else 0
            at += len(literal)
        return at

    def _emit_content(self, text: str) -> None:
        if self._is_after_call and (not self._has_content or text.isspace()):
            text = text.lstrip()
        if not text or self._calls_only:
            return
        self._is_after_call = False
        self._has_content = True
        if self._events and isinstance(last := self._events[-1], ContentDelta):
            text = last.text + text
            del self._events[-1]
        self._events.append(ContentDelta(text))

    def _emit_call(self, name: str, arguments: str) -> None:
        self._num_calls += 1
        if not self._is_dropped:
            index = self._num_calls - 1
            self._events.append(ToolCallStarted(index, self._new_id(index), name))
            if arguments:
                self._emit_arguments(arguments)

    def _emit_arguments(self, text: str) -> None:
        if not self._is_dropped:
            self._events.append(ArgumentsDelta(self._num_calls - 1, text))

    @property
    def _is_dropped(self) -> bool:
        return self._max_calls is not None and self._num_calls > self._max_calls

    def _new_id(self, index: int) -> str:
        seed = f"{self._id_seed}/{index}".encode()
        return f"call_{hashlib.blake2b(seed, digest_size=12).hexdigest()}"


def _find_start(text: str, mark: str) -> int:
    """Return where `mark` begins in `text`, or may begin at its end; else the text's length."""
    at = text.find(mark)
    if at >= 0:
        return at
    for start in range(max(0, len(text) - len(mark) + 1), len(text)):
        if mark.startswith(text[start:]):
            return start
    return len(text)
