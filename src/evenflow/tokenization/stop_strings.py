"""Finding stop strings in a text that arrives in pieces, without showing what may be cut off.

Knows: text and stop strings.
Does not know: tokens, requests.

Invariants:
    What was released, plus what is held, is the text pushed so far, until a stop matches.
    Nothing is held that can no longer become a stop string, and nothing released belongs to one.
    The result depends on the text only, never on how it was cut into pieces.
"""

from __future__ import annotations


class StopStringMatcher:
    """Withholds text that may be the beginning of a stop string until that is decided.

    The stop string that is complete first wins, since that is where a stream has to end; of several
    that are complete at the same character, the longest.

    Args:
        stop: non-empty strings; none means that everything passes.
        include: whether the stop string itself is released.
    """

    __slots__ = ("_held", "_include", "_longest", "_stop")

    def __init__(self, stop: tuple[str, ...], include: bool) -> None:
        self._stop = stop
        self._include = include
        self._longest = max(map(len, stop), default=0)
        self._held = ""

    def push(self, text: str, *, may_match: bool = True) -> tuple[str, str | None]:
        """Take more text; after a match the matcher is done.

        Args:
            text: what comes next.
            may_match: False lets stop strings that are complete by now pass as text.

        Returns:
            The text that may be shown now, and the stop string that was matched, if any.
        """
        if not self._stop or not text:
            return text, None
        text = self._held + text
        found = [(at + len(stop), at, stop) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found and may_match:
            end, start, stop = min(found)
            self._held = ""
            return text[: end if self._include else start], stop
        cut = self._first_candidate(text)
        self._held = text[cut:]
        return text[:cut], None

    def flush(self) -> str:
        """Return what is held: the text has ended, so it is no stop string."""
        text, self._held = self._held, ""
        return text

    def _first_candidate(self, text: str) -> int:
        """Return the first position from which `text` is the beginning of a stop string."""
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            tail = text[start:]
            if any(stop.startswith(tail) for stop in self._stop):
                return start
        return len(text)
