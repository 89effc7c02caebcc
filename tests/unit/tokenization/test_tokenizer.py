from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from evenflow.core.errors import InvalidRequestError
from evenflow.tokenization.tokenizer import SpecialTokens, Tokenizer
from support.small_tokenizers import LINES, byte_level_backend


@pytest.fixture(scope="module")
def tokenizer():
    names = {"bos_token": "<|begin|>"}
    return Tokenizer(byte_level_backend(), SpecialTokens(bos_id=0, names=names))


def test_encode_takes_special_tokens_in_a_text_for_tokens(tokenizer):
    assert tokenizer.encode("<|im_start|>")[0] in tokenizer.special_ids


def test_encode_takes_special_tokens_for_text_when_told(tokenizer):
    ids = tokenizer.encode("a<|im_start|>b", parse_special=False)
    assert not tokenizer.special_ids & set(ids)
    assert tokenizer.decode(ids) == "a<|im_start|>b"


def test_encode_is_the_same_for_both_when_the_text_has_no_special_token(tokenizer):
    text = LINES[0]
    assert tokenizer.encode(text, parse_special=False) == tokenizer.encode(text)


def test_encode_refuses_lone_surrogates(tokenizer):
    with pytest.raises(InvalidRequestError) as caught:
        tokenizer.encode("bad \ud800")
    assert caught.value.param == "prompt"


def test_encode_gives_nothing_for_an_empty_text(tokenizer):
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""


def test_tokenizer_can_be_used_by_many_threads(tokenizer):
    texts = [f"{line} <|im_start|> {index}" for index in range(40) for line in LINES]
    expected = [tokenizer.encode(text, parse_special=i % 2 == 0) for i, text in enumerate(texts)]
    fresh = Tokenizer(byte_level_backend(), SpecialTokens())

    def both_ways(job):
        index, text = job
        ids = fresh.encode(text, parse_special=index % 2 == 0)
        return ids, fresh.decode(ids, skip_special_tokens=False)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(both_ways, enumerate(texts)))
    finally:
        sys.setswitchinterval(interval)
    assert [ids for ids, _ in results] == expected
    assert [text for _, text in results] == texts


def test_chat_template_falls_back_to_chatml_when_the_vocabulary_has_its_tokens(tokenizer):
    messages = [{"role": "user", "content": "the"}]
    text = "<|im_start|>user\nthe<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.apply_chat_template(messages) == text
    assert tokenizer.encode_chat(messages) == tokenizer.encode(text, add_special_tokens=False)
