from __future__ import annotations

import pytest

from evenflow.core import errors
from evenflow.core.errors import ContextLengthError, EvenflowError, InvalidRequestError

TREE = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, EvenflowError)
]


def test_error_says_what_why_and_fix_as_sentences() -> None:
    error = EvenflowError("it broke", why="3 is above 2", fix="Use --limit 3")
    assert str(error) == "it broke. 3 is above 2. Use --limit 3."
    assert (error.what, error.why, error.fix) == ("it broke", "3 is above 2", "Use --limit 3")


def test_error_leaves_out_what_is_not_said_and_doubles_no_full_stop() -> None:
    assert str(EvenflowError("it broke.")) == "it broke."
    assert str(EvenflowError("it broke", fix="Mend it.")) == "it broke. Mend it."


def test_error_codes_are_words_of_their_own() -> None:
    codes = [error.code for error in TREE]
    assert len(TREE) >= 10
    assert len(set(codes)) == len(codes)
    assert all(code.replace("_", "").islower() for code in codes)


def test_invalid_request_error_names_the_param() -> None:
    assert InvalidRequestError("bad", param="top_p").param == "top_p"
    assert InvalidRequestError("bad").param is None


def test_context_length_error_is_a_bad_request() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        raise ContextLengthError("too long", param="prompt", why="9 of 8")
    assert caught.value.code == "context_length_exceeded"
