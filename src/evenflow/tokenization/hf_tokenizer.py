"""Tokenisers from a Hugging Face model directory.

Knows: `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja`.
Does not know: how the directory came here.

`tokenizer.json` alone says what is put around a text; the config's `add_bos_token` is older than it
and not read, as in transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import tokenizers
from tokenizers import AddedToken

from evenflow.core.errors import ModelFormatError, ModelNotFoundError, UnsupportedModelError
from evenflow.tokenization.tokenizer import SpecialTokens, Tokenizer

_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")


def from_directory(path: Path, *, chat_template: str | None = None) -> Tokenizer:
    """Build the tokeniser of the model directory `path`.

    Args:
        path: the directory.
        chat_template: used instead of the directory's own.

    Raises:
        ModelNotFoundError: there is no tokeniser.
        UnsupportedModelError: there is one, but only as a sentencepiece model.
        ModelFormatError: a file is damaged.
    """
    file = path / "tokenizer.json"
    if not file.is_file():
        raise _missing(path)
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing more precise
        raise _damaged(file, f"{error}") from error
    config = _read(path / "tokenizer_config.json")
    names = {name: text for name in _NAMES if (text := _token_text(config.get(name)))}
    known = [text for text in names.values() if backend.token_to_id(text) is not None]
    backend.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in known])
    if chat_template is None:
        chat_template = _own_chat_template(path, config)
    return Tokenizer(backend, _special_tokens(backend, names), chat_template)


def _special_tokens(backend: tokenizers.Tokenizer, names: Mapping[str, str]) -> SpecialTokens:
    ids = {name: backend.token_to_id(text) for name, text in names.items()}
    return SpecialTokens(bos_id=ids.get("bos_token"), eos_id=ids.get("eos_token"), names=names)


def _own_chat_template(path: Path, config: Mapping[str, object]) -> str | None:
    """Return the template: its own file first, then the config's, there perhaps one of several."""
    file = path / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        named = [item for item in template if isinstance(item, dict)]
        template = {item.get("name"): item.get("template") for item in named}.get("default")
    return template if isinstance(template, str) else None


def _token_text(value: object) -> str | None:
    """Return a token's text; configs hold it bare or inside a description."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _read(file: Path) -> dict[str, object]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(file, f"{error}") from error
    if not isinstance(content, dict):
        raise _damaged(file, "it does not hold a JSON object")
    return content


def _damaged(file: Path, why: str) -> ModelFormatError:
    return ModelFormatError(f"{file} cannot be used", why=why, fix="Fetch the model again")


def _missing(path: Path) -> ModelNotFoundError | UnsupportedModelError:
    if (path / "tokenizer.model").is_file():
        return UnsupportedModelError(
            f"{path} has its tokeniser only as tokenizer.model",
            why="evenflow reads tokenizer.json, not sentencepiece models",
            fix="Convert it once with AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
            " of transformers, or use a GGUF file of the model",
        )
    return ModelNotFoundError(
        f"{path} has no tokeniser",
        why="there is no tokenizer.json",
        fix="Fetch the whole model directory",
    )
