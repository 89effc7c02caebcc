"""Texts for a sentence model: its own ids, whole or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from evenflow.core.errors import (
    ContextLengthError,
    InvalidRequestError,
    ModelFormatError,
    ModelNotFoundError,
)
from evenflow.tokenization.sentence_tokenizer import load_sentence_tokenizer

VOCAB = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "the": 4, "cat": 5, "##s": 6}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Return a WordPiece tokeniser that, left alone, cuts at 5 tokens and pads to 8."""
    backend = tokenizers.Tokenizer(models.WordPiece(VOCAB, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    backend.enable_truncation(5)
    backend.enable_padding(length=8)
    backend.save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, "config.json", max_position_embeddings=10)
    return tmp_path


def write(directory: Path, name: str, **content: object) -> None:
    (directory / name).write_text(json.dumps(content))


def test_encode_puts_markers_around_the_text_and_pads_nothing(directory: Path) -> None:
    tokenizer = load_sentence_tokenizer(directory)
    assert tokenizer.encode("The cats") == [2, 4, 5, 6, 3]
    assert tokenizer.encode("") == [2, 3]


def test_encode_refuses_a_text_that_is_too_long_with_the_numbers(directory: Path) -> None:
    tokenizer = load_sentence_tokenizer(directory)
    assert len(tokenizer.encode("cat " * 8)) == 10
    with pytest.raises(ContextLengthError, match=r"11 tokens.*made for 10"):
        tokenizer.encode("cat " * 9)


def test_encode_refuses_lone_surrogates(directory: Path) -> None:
    with pytest.raises(InvalidRequestError, match="surrogate"):
        load_sentence_tokenizer(directory).encode("cat \ud800")


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("sentence_bert_config.json", {"max_seq_length": 6}, 6),
        ("sentence_bert_config.json", {"max_seq_length": None}, 10),
        ("tokenizer_config.json", {"model_max_length": 7}, 7),
        ("tokenizer_config.json", {"model_max_length": 1e30}, 10),
    ],
)
def test_load_takes_the_shortest_length_that_is_named(
    directory: Path, file: str, content: dict[str, object], expected: int
) -> None:
    write(directory, file, **content)
    assert load_sentence_tokenizer(directory).max_num_tokens == expected


def test_load_refuses_a_directory_without_tokeniser(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"tokenizer\.json"):
        load_sentence_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("tokenizer.json", "{}"),
        ("config.json", "[]"),
        ("config.json", "{"),
        ("config.json", '{"max_position_embeddings": "many"}'),
        ("config.json", "{}"),
    ],
)
def test_load_refuses_damaged_files(directory: Path, file: str, text: str) -> None:
    (directory / file).write_text(text)
    with pytest.raises(ModelFormatError):
        load_sentence_tokenizer(directory)


def test_sentence_tokenizer_needs_no_torch() -> None:
    code = "import sys, evenflow.tokenization.sentence_tokenizer; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
