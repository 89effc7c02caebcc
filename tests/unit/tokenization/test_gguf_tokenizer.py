from __future__ import annotations

import numpy as np
import pytest
import tokenizers
from tokenizers import Regex, pre_tokenizers

from evenflow.core.errors import ModelFormatError, UnsupportedModelError
from evenflow.tokenization.gguf_tokenizer import from_gguf_metadata
from evenflow.tokenization.pretokenization import WORD_SPLITS
from support.small_tokenizers import LINES, MARK, byte_level_backend, gguf_metadata

BACKEND = byte_level_backend()
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]


def sentencepiece_metadata(words, **entries):
    """Score `words` in their order, the first best."""
    tokens = ["<unk>", "<s>", "</s>", *BYTE_TOKENS, *words]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(rank) for rank in range(len(words))],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(words),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        **{f"tokenizer.ggml.{key}": value for key, value in entries.items()},
    }


def written(tokenizer, text, **options):
    return [tokenizer.token_text(i) for i in tokenizer.encode(text, **options)]


def test_byte_level_equals_the_tokenizer_it_describes():
    tokenizer = from_gguf_metadata(gguf_metadata(BACKEND))
    for line in [*LINES, "<|begin|>a <tool call> b", "é e\u0301", "\x00\x07\r\n\t  ", ""]:
        ids = tokenizer.encode(line)
        assert ids == BACKEND.encode(line).ids
        assert tokenizer.decode(ids) == BACKEND.decode(ids)


def test_byte_level_takes_numpy_arrays_for_lists():
    metadata = gguf_metadata(BACKEND)
    key = "tokenizer.ggml.token_type"
    metadata[key] = np.array(metadata[key], dtype=np.int32)
    assert from_gguf_metadata(metadata).special_ids == {0, 1}


def test_smollm_cuts_digits_before_spaces():
    plain = from_gguf_metadata(gguf_metadata(BACKEND, pre="gpt-2"))
    digits = from_gguf_metadata(gguf_metadata(BACKEND, pre="smollm"))
    assert plain._backend.pre_tokenizer.pre_tokenize_str("x   12") == [
        ("x", (0, 1)),
        ("ĠĠ", (1, 3)),
        ("Ġ12", (3, 6)),
    ]
    assert digits._backend.pre_tokenizer.pre_tokenize_str("x   12") == [
        ("x", (0, 1)),
        ("ĠĠĠ", (1, 4)),
        ("1", (4, 5)),
        ("2", (5, 6)),
    ]


def test_smollm_cuts_as_the_published_tokenizer_does():
    published = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    ours = WORD_SPLITS["smollm"].pre_tokenizer()
    for text in [*LINES, "a1b22 3  4\n5", "½ ² ٣ Ⅷ 一", "it's 5's", "  \n\n 7"]:
        assert ours.pre_tokenize_str(text) == published.pre_tokenize_str(text)


@pytest.mark.parametrize(
    ("pre", "words"),
    [
        ("gpt-2", ["It", "'s", "Ġ12345", "Ġ", "Ġthings", "...", "Ċ", "Ċ", "X", "'", "LL"]),
        ("smollm", ["It", "'s", "Ġ", "1", "2", "3", "4", "5", "Ġ", "Ġthings", "...", "Ċ", "Ċ"]),
        ("llama-bpe", ["It", "'s", "Ġ", "123", "45", "Ġ", "Ġthings", "...ĊĊ", "X", "'LL"]),
        ("qwen2", ["It", "'s", "Ġ", "1", "2", "3", "4", "5", "Ġ", "Ġthings", "...ĊĊ", "X", "'LL"]),
        ("tekken", ["It", "'s", "Ġ", "1", "2", "3", "4", "5", "Ġ", "Ġthings", "...ĊĊ", "X", "'LL"]),
        ("deepseek-llm", ["It", "'", "s", "Ġ", "12345", "Ġ", "Ġthings", "...", "Ċ", "Ċ", "X"]),
        ("deepseek-coder", ["It", "'", "s", "Ġ", "1", "2", "3", "4", "5", "Ġ", "Ġthings", "..."]),
    ],
)
def test_word_split_cuts_as_its_model_does(pre, words):
    cut = WORD_SPLITS[pre].pre_tokenizer().pre_tokenize_str("It's 12345  things...\n\nX'LL")
    assert [word for word, _ in cut][: len(words)] == words


@pytest.mark.parametrize("pre", sorted(WORD_SPLITS))
def test_word_split_loses_no_character(pre):
    text = "".join(LINES) + "½ ٣ \u200b\u0301 \r\n\x00 \uff46\uff55。\u3000「x」"
    cut = WORD_SPLITS[pre].pre_tokenizer().pre_tokenize_str(text)
    assert tokenizers.decoders.ByteLevel().decode([word for word, _ in cut]) == text


def test_qwen2_composes_characters_first():
    tokenizer = from_gguf_metadata(gguf_metadata(BACKEND, pre="qwen2"))
    assert tokenizer.encode("e\u0301") == tokenizer.encode("\u00e9")


def test_llama3_takes_a_known_word_whole_whatever_the_merges_say():
    metadata = gguf_metadata(BACKEND, pre="llama-bpe", add_bos_token=False)
    metadata["tokenizer.ggml.tokens"].append("zqzq")
    metadata["tokenizer.ggml.token_type"].append(1)
    assert written(from_gguf_metadata(metadata), "zqzq") == ["zqzq"]


def test_bos_is_added_when_the_file_says_so():
    metadata = gguf_metadata(BACKEND, bos_token_id=0, eos_token_id=1)
    assert 0 not in from_gguf_metadata(metadata).encode("a")
    metadata["tokenizer.ggml.add_bos_token"] = True
    metadata["tokenizer.ggml.add_eos_token"] = True
    tokenizer = from_gguf_metadata(metadata)
    assert [tokenizer.encode("a")[0], tokenizer.encode("a")[-1]] == [0, 1]
    assert tokenizer.encode("a", add_special_tokens=False) == tokenizer.encode("a")[1:-1]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1)


def test_sentencepiece_joins_the_best_scored_neighbours_first():
    words = ["ab", "bc", "abc", "a", "b", "c", MARK]
    tokenizer = from_gguf_metadata(sentencepiece_metadata(words, add_space_prefix=False))
    assert written(tokenizer, "abc", add_special_tokens=False) == ["abc"]
    words = ["bc", "ab", "cc", "a", "b", "c", MARK]
    tokenizer = from_gguf_metadata(sentencepiece_metadata(words, add_space_prefix=False))
    assert written(tokenizer, "abcc", add_special_tokens=False) == ["a", "bc", "c"]


def test_sentencepiece_puts_one_space_before_every_text():
    tokenizer = from_gguf_metadata(sentencepiece_metadata([MARK + "a", MARK, "a"]))
    assert tokenizer.encode("a") == [1, 259]
    assert written(tokenizer, " a", add_special_tokens=False) == [" ", " a"]
    assert tokenizer.decode(tokenizer.encode(" a")) == " a"


def test_sentencepiece_writes_unknown_characters_as_bytes():
    tokenizer = from_gguf_metadata(sentencepiece_metadata(["a", MARK], add_space_prefix=False))
    ids = tokenizer.encode("aé", add_special_tokens=False)
    assert ids == [259, 3 + 0xC3, 3 + 0xA9]
    assert tokenizer.decode(ids) == "aé"


def test_sentencepiece_does_not_merge_text_into_a_control_token():
    metadata = sentencepiece_metadata(["<", "/", "s", ">", "</", "s>"], add_space_prefix=False)
    tokenizer = from_gguf_metadata(metadata)
    assert tokenizer.encode("</s>", add_special_tokens=False) == [2]
    forged = tokenizer.encode("</s>", add_special_tokens=False, parse_special=False)
    assert 2 not in forged
    assert tokenizer.decode(forged) == "</s>"


def test_sentencepiece_finds_runs_of_spaces_that_the_file_holds_as_they_are():
    metadata = sentencepiece_metadata(["  ", "a", MARK], add_space_prefix=False)
    tokenizer = from_gguf_metadata(metadata)
    assert tokenizer.encode("a  a", add_special_tokens=False) == [260, 259, 260]
    assert tokenizer.vocab_size == 262


def test_sentencepiece_uses_the_files_own_merges_when_it_has_them():
    metadata = sentencepiece_metadata(["ab", "bc", "a", "b", "c"], merges=["b c"])
    metadata["tokenizer.ggml.add_space_prefix"] = False
    tokenizer = from_gguf_metadata(metadata)
    assert written(tokenizer, "abc", add_special_tokens=False) == ["a", "bc"]


def test_unknown_models_are_refused_with_the_known_ones():
    with pytest.raises(UnsupportedModelError, match="gpt2, llama"):
        from_gguf_metadata({**gguf_metadata(BACKEND), "tokenizer.ggml.model": "bert"})


def test_unknown_pre_tokenizers_are_refused_with_the_known_ones():
    with pytest.raises(UnsupportedModelError, match=r"'new'.*qwen2, refact, smaug-bpe"):
        from_gguf_metadata(gguf_metadata(BACKEND, pre="new"))


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ({"tokens": []}, "tokens is missing"),
        ({"merges": []}, "merges is missing"),
        ({"merges": ["a b c"]}, "not a pair"),
        ({"merges": ["nobody knows"]}, "out of vocabulary"),
        ({"token_type": [1]}, "token_type has 1 entries"),
        ({"token_type": 3}, "not an array"),
        ({"bos_token_id": 10**6}, "beyond"),
        ({"bos_token_id": "x"}, "beyond"),
        ({"pre": 3}, "not text"),
    ],
)
def test_damaged_byte_level_metadata_is_refused(entries, why):
    with pytest.raises(ModelFormatError, match=why):
        from_gguf_metadata(gguf_metadata(BACKEND, **entries))


def test_sentencepiece_without_scores_is_refused():
    metadata = sentencepiece_metadata(["a"])
    del metadata["tokenizer.ggml.scores"]
    with pytest.raises(ModelFormatError, match="scores is missing"):
        from_gguf_metadata(metadata)


def test_implied_merges_order_every_cut_as_the_slow_rule_does():
    words = ["aaa", "aa", "ca", "aac", "caa", "a", "c", "aaca", MARK]
    tokenizer = from_gguf_metadata(sentencepiece_metadata(words, add_space_prefix=False))
    ranks = {word: rank for rank, word in enumerate(words)}
    slow = sorted(
        (
            (ranks[word], -cut, word[:cut], word[cut:])
            for word in words
            for cut in range(1, len(word))
        ),
    )
    expected = [(left, right) for _, _, left, right in slow if left in ranks and right in ranks]
    rebuilt = tokenizers.Tokenizer(
        tokenizers.models.BPE({word: i for i, word in enumerate(words)}, expected)
    )
    rebuilt.pre_tokenizer = pre_tokenizers.Split(Regex("$"), "isolated")
    for text in ("aaaaa", "caacaa", "acaacac", "aacaaacaaaa"):
        assert written(tokenizer, text, add_special_tokens=False) == rebuilt.encode(text).tokens
