from __future__ import annotations

import pytest
import tokenizers
from tokenizers import decoders, models

from evenflow.core.errors import UnsupportedModelError
from evenflow.tokenization.tokenizer import SpecialTokens, Tokenizer
from support.small_tokenizers import byte_level_backend, sentencepiece_backend


@pytest.fixture(scope="module")
def byte_level():
    return Tokenizer(byte_level_backend(), SpecialTokens())


@pytest.fixture(scope="module")
def prefixed():
    return Tokenizer(sentencepiece_backend(add_space_prefix=True), SpecialTokens())


def byte_ids(tokenizer, data):
    """Ids of single-byte tokens, in a tokeniser of either spelling."""
    one_byte = {tokenizer.token_bytes(i): i for i in reversed(range(tokenizer.vocab_size))}
    return [one_byte[bytes([byte])] for byte in data]


def fallback_ids(tokenizer, data):
    return [tokenizer.encode("<s>")[-1] + 2 + byte for byte in data]


def pieces(tokenizer, ids, **options):
    stream = tokenizer.stream(**options)
    return [stream.push(token_id) for token_id in ids], stream.finish()


def test_stream_holds_a_character_until_its_last_byte(byte_level):
    ids = byte_ids(byte_level, "a😀é".encode())
    assert pieces(byte_level, ids) == (["a", "", "", "", "😀", "", "é"], "")


def test_stream_holds_a_character_of_fallback_bytes(prefixed):
    ids = fallback_ids(prefixed, "🦜".encode())
    assert [prefixed.token_bytes(i) for i in ids] == [bytes([b]) for b in "🦜".encode()]
    assert pieces(prefixed, ids) == (["", "", "", "🦜"], "")


def test_finish_marks_an_unfinished_character_once_in_byte_level(byte_level):
    assert pieces(byte_level, byte_ids(byte_level, b"\xf0\x9f\x98")) == (["", "", ""], "\ufffd")


def test_finish_marks_each_unfinished_byte_in_sentencepiece(prefixed):
    ids = fallback_ids(prefixed, b"\xf0\x9f\x98")
    assert pieces(prefixed, ids) == (["", "", ""], "\ufffd" * 3)


def test_stream_keeps_good_characters_beside_a_bad_byte(prefixed):
    ids = fallback_ids(prefixed, b"\xc3\xa9\xff!")
    assert prefixed.decode(ids) == "é\ufffd!"


def test_stream_strips_one_space_at_the_beginning_only(prefixed):
    ids = prefixed.encode(" the the", add_special_tokens=False)
    assert prefixed.decode(ids) == " the the"
    ids = prefixed.encode("the the", add_special_tokens=False)
    assert prefixed.decode(ids) == "the the"


def test_stream_keeps_the_first_space_when_it_continues_a_text(prefixed):
    ids = prefixed.encode("the", add_special_tokens=False)
    parts, rest = pieces(prefixed, ids, after_text=True)
    assert "".join(parts) + rest == " the"


def test_stream_shows_special_tokens_when_asked(byte_level):
    ids = byte_level.encode("<|begin|>the")
    assert byte_level.decode(ids) == "the"
    assert byte_level.decode(ids, skip_special_tokens=False) == "<|begin|>the"


def test_stream_shows_plain_added_tokens_always(byte_level):
    ids = byte_level.encode("a<tool call>b")
    assert len(ids) == 3
    assert byte_level.decode(ids) == "a<tool call>b"


def test_stream_ignores_ids_beyond_the_vocabulary(byte_level):
    assert byte_level.decode([byte_level.vocab_size + 7]) == ""


def test_token_text_marks_part_of_a_character(byte_level):
    (first, _) = byte_ids(byte_level, "é".encode())
    assert byte_level.token_bytes(first) == b"\xc3"
    assert byte_level.token_text(first) == "\ufffd"


@pytest.mark.parametrize("decoder", [decoders.WordPiece(), decoders.Sequence([])])
def test_tokenizer_refuses_a_decoder_it_cannot_stream(decoder):
    backend = tokenizers.Tokenizer(models.BPE())
    backend.decoder = decoder
    with pytest.raises(UnsupportedModelError, match="supported are ByteLevel"):
        Tokenizer(backend, SpecialTokens())


def test_tokenizer_refuses_a_missing_decoder():
    with pytest.raises(UnsupportedModelError):
        Tokenizer(tokenizers.Tokenizer(models.BPE()), SpecialTokens())
