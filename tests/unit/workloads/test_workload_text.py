from __future__ import annotations

import pytest

from evenflow.workloads.request import Segment, WorkloadRequest
from evenflow.workloads.text import Vocabulary, with_text


def request(num_tokens: int, *segments: Segment, **content: object) -> WorkloadRequest:
    return WorkloadRequest(
        num_prompt_tokens=num_tokens, num_output_tokens=1, segments=segments, **content
    )


def count_short_words(text: str) -> int:
    """A tokeniser for which words of up to five letters are one token, others two, and a BOS."""
    return 1 + sum(1 if len(word) <= 5 else 2 for word in text.split())


def count_letters(text: str) -> int:
    return len(text)


def test_vocabulary_uses_one_token_words_only() -> None:
    text = Vocabulary.counted_by(count_short_words).text([Segment("a", 2000)])
    assert len(text.split()) == 2000
    assert max(map(len, text.split())) == 5


def test_vocabulary_meets_lengths_on_average_when_no_word_is_one_token() -> None:
    text = Vocabulary.counted_by(count_letters).text([Segment("a", 5000)])
    assert count_letters(text) == pytest.approx(5000, rel=0.05)


def test_text_of_a_shorter_segment_begins_the_longer_one_of_the_same_key() -> None:
    short, long = (Vocabulary().text([Segment("a", n)]) for n in (7, 40))
    assert long.startswith(f"{short} ")


def test_requests_share_what_their_segments_share() -> None:
    prefix = Segment("prefix", 20)
    requests = [request(30, prefix, Segment(f"own {index}", 10)) for index in range(2)]
    first, second = (str(r.prompt).split() for r in with_text(requests, Vocabulary(), seed=0))
    assert first[:20] == second[:20]
    assert first[20:] != second[20:]


def test_requests_without_content_get_texts_of_their_length_that_differ() -> None:
    written = with_text([request(50), request(50)], Vocabulary(), seed=0)
    assert [len(str(r.prompt).split()) for r in written] == [50, 50]
    assert written[0].prompt != written[1].prompt


def test_requests_share_no_text_when_the_seed_differs() -> None:
    first, second = (with_text([request(50)], Vocabulary(), seed)[0].prompt for seed in (1, 2))
    assert first != second


def test_requests_with_a_prompt_keep_it() -> None:
    assert with_text([request(1, prompt="Hello")], Vocabulary(), 0)[0].prompt == "Hello"
