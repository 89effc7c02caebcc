"""Stop strings against a brute-force oracle that sees the whole text at once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from evenflow.tokenization.stop_strings import StopStringMatcher

LETTERS = st.text("abc", max_size=4)
STOPS = st.lists(st.text("abc", min_size=1, max_size=4), max_size=4).map(tuple)
PIECES = st.lists(LETTERS, max_size=12)


def oracle(text: str, stops: tuple[str, ...], include: bool) -> tuple[str, str | None]:
    """Cut at the first character that completes a stop string, the longest of them."""
    for end in range(1, len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end if include else end - len(stop)], stop
    return text, None


@given(PIECES, STOPS, st.booleans())
def test_matcher_agrees_with_the_oracle_however_text_is_cut(pieces, stops, include):
    matcher, shown, matched = StopStringMatcher(stops, include), "", None
    for piece in pieces:
        released, matched = matcher.push(piece)
        shown += released
        if matched is not None:
            break
    else:
        shown += matcher.flush()
    assert (shown, matched) == oracle("".join(pieces), stops, include)


@given(PIECES, STOPS)
def test_matcher_holds_exactly_what_may_become_a_stop_string(pieces, stops):
    matcher, shown, pushed = StopStringMatcher(stops, include=False), "", ""
    for piece in pieces:
        released, matched = matcher.push(piece)
        if matched is not None:
            return
        shown += released
        pushed += piece
        held = pushed[len(shown) :]
        longest = max(
            (n for stop in stops for n in range(len(stop)) if pushed.endswith(stop[:n])), default=0
        )
        assert len(held) == longest
