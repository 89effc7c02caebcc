from __future__ import annotations

import json

import pytest
from tokenizers import processors
from transformers import AutoTokenizer

from evenflow.core.errors import (
    ConfigError,
    InvalidRequestError,
    ModelFormatError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from evenflow.tokenization import load_tokenizer
from evenflow.tokenization.gguf_tokenizer import from_gguf_metadata
from support.small_tokenizers import LINES, byte_level_backend, gguf_metadata, sentencepiece_backend

TEXTS = [*LINES, "<|begin|>a <tool call> b<s>c</s>", "é e\u0301", "\x00\x07\r\n\t  ", " ", ""]
BYTE_LEVEL = byte_level_backend().to_str()
PREFIXED = sentencepiece_backend(add_space_prefix=True).to_str()
BYTE_NAMES = {
    "bos_token": "<|begin|>",
    "eos_token": {"__type": "AddedToken", "content": "<|im_start|>"},
}
PREFIXED_NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


@pytest.fixture
def directory(tmp_path):
    def write(tokenizer, **config):
        (tmp_path / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
        config.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        return tmp_path

    return write


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize(
    ("description", "names"), [(BYTE_LEVEL, BYTE_NAMES), (PREFIXED, PREFIXED_NAMES)]
)
def test_directory_equals_transformers(directory, description, names, adds_bos):
    path = directory(description, add_bos_token=adds_bos, **names)
    ours, theirs = load_tokenizer(path), AutoTokenizer.from_pretrained(path)
    assert ours.bos_token_id == theirs.bos_token_id
    assert ours.eos_token_id == theirs.eos_token_id
    for text in TEXTS:
        for special in (True, False):
            ids = ours.encode(text, add_special_tokens=special)
            assert ids == theirs.encode(text, add_special_tokens=special)
            assert ours.decode(ids, skip_special_tokens=special) == theirs.decode(
                ids, skip_special_tokens=special
            )


def test_tokenizer_file_says_what_is_put_around_a_text(directory):
    backend = byte_level_backend()
    backend.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]
    )
    path = directory(backend.to_str(), **BYTE_NAMES)
    assert AutoTokenizer.from_pretrained(path).encode("a")[0] == 0
    assert load_tokenizer(path).encode("a")[0] == 0


def test_named_tokens_become_special_when_the_file_does_not_say_so(directory):
    tokenizer = load_tokenizer(directory(BYTE_LEVEL, pad_token="z"))
    assert tokenizer.decode(tokenizer.encode("azb")) == "ab"


def test_truncation_and_padding_in_the_file_are_ignored(directory):
    backend = byte_level_backend()
    expected = backend.encode(LINES[0]).ids
    backend.enable_truncation(3)
    backend.enable_padding(length=500)
    assert load_tokenizer(directory(backend.to_str())).encode(LINES[0]) == expected


def test_chat_template_comes_from_the_config(directory):
    assert load_tokenizer(directory(BYTE_LEVEL, chat_template="one")).chat_template == "one"


def test_chat_template_is_the_default_one_of_several(directory):
    several = [{"name": "tool_use", "template": "two"}, {"name": "default", "template": "one"}]
    assert load_tokenizer(directory(BYTE_LEVEL, chat_template=several)).chat_template == "one"


def test_chat_template_file_wins_over_the_config(directory):
    path = directory(BYTE_LEVEL, chat_template="one")
    (path / "chat_template.jinja").write_text("two {{ bos_token }}")
    tokenizer = load_tokenizer(path)
    assert tokenizer.chat_template == "two {{ bos_token }}"


def test_chat_template_of_the_user_wins_over_all(directory, tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text("{{ bos_token }}{{ eos_token }}")
    path = directory(BYTE_LEVEL, chat_template="one", **BYTE_NAMES)
    tokenizer = load_tokenizer(path, chat_template=file)
    messages = [{"role": "user", "content": "x"}]
    assert tokenizer.apply_chat_template(messages) == "<|begin|><|im_start|>"
    metadata = gguf_metadata(byte_level_backend())
    metadata["tokenizer.chat_template"] = "own"
    assert from_gguf_metadata(metadata).chat_template == "own"
    assert from_gguf_metadata(metadata, chat_template="mine").chat_template == "mine"


def test_chat_template_of_the_user_that_cannot_be_read_is_refused(directory, tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.jinja"):
        load_tokenizer(directory(BYTE_LEVEL), chat_template=tmp_path / "nowhere.jinja")


def test_messages_are_refused_when_no_template_fits(directory):
    tokenizer = load_tokenizer(directory(PREFIXED))
    assert tokenizer.chat_template is None
    with pytest.raises(InvalidRequestError, match="--chat-template"):
        tokenizer.apply_chat_template([{"role": "user", "content": "x"}])


def test_directory_with_a_sentencepiece_model_only_says_how_to_convert_it(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(UnsupportedModelError, match="save_pretrained"):
        load_tokenizer(tmp_path)


def test_directory_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_damaged_tokenizer_file_is_refused(directory):
    with pytest.raises(ModelFormatError, match=r"tokenizer\.json cannot be used"):
        load_tokenizer(directory("{"))


@pytest.mark.parametrize("content", ["{", "[]"])
def test_damaged_config_is_refused(directory, content):
    path = directory(BYTE_LEVEL)
    (path / "tokenizer_config.json").write_text(content)
    with pytest.raises(ModelFormatError, match=r"tokenizer_config\.json cannot be used"):
        load_tokenizer(path)
