from __future__ import annotations

import pytest

from evenflow.tokenization.stop_strings import StopStringMatcher


def test_matcher_lets_everything_pass_when_there_are_no_stops():
    matcher = StopStringMatcher((), include=False)
    assert matcher.push("any text") == ("any text", None)
    assert matcher.flush() == ""


@pytest.mark.parametrize(("include", "shown"), [(False, "one "), (True, "one END")])
def test_matcher_shows_the_stop_string_when_asked(include, shown):
    assert StopStringMatcher(("END",), include).push("one END two") == (shown, "END")


def test_matcher_withholds_until_a_stop_across_pieces_is_complete():
    matcher = StopStringMatcher(("\n\nUser:",), include=False)
    assert matcher.push("Hi.\n") == ("Hi.", None)
    assert matcher.push("\nUs") == ("", None)
    assert matcher.push("er: x") == ("", "\n\nUser:")


def test_matcher_releases_when_the_candidate_fails():
    matcher = StopStringMatcher(("<end>",), include=False)
    assert matcher.push("a<en") == ("a", None)
    assert matcher.push("try>") == ("<entry>", None)


def test_matcher_keeps_the_shorter_candidate_inside_a_failed_one():
    matcher = StopStringMatcher(("aab",), include=False)
    assert matcher.push("aa") == ("", None)
    assert matcher.push("a") == ("a", None)
    assert matcher.push("b") == ("", "aab")


def test_matcher_ends_at_the_stop_that_is_complete_first():
    assert StopStringMatcher(("abcd", "bc"), include=False).push("abcd") == ("a", "bc")


def test_matcher_prefers_the_longest_when_two_are_complete_together():
    assert StopStringMatcher(("c", "abc"), include=False).push("xabc") == ("x", "abc")


def test_flush_gives_back_what_never_became_a_stop():
    matcher = StopStringMatcher(("STOP",), include=False)
    assert matcher.push("nonST") == ("non", None)
    assert matcher.flush() == "ST"
    assert matcher.flush() == ""
