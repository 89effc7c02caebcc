"""One door to every tokeniser."""

from __future__ import annotations

from pathlib import Path

from evenflow.core.errors import ConfigError
from evenflow.core.gguf_file import GGUFFile
from evenflow.tokenization.gguf_tokenizer import from_gguf_metadata
from evenflow.tokenization.hf_tokenizer import from_directory
from evenflow.tokenization.tokenizer import Tokenizer


def load_tokenizer(path: Path, *, chat_template: Path | None = None) -> Tokenizer:
    """Build the tokeniser of a model.

    Args:
        path: a GGUF file, or a Hugging Face model directory.
        chat_template: a file with a jinja template to use instead of the model's own.

    Raises:
        ConfigError: the chat template cannot be read.
    """
    template = None if chat_template is None else _read_template(chat_template)
    if path.is_dir():
        return from_directory(path, chat_template=template)
    return from_gguf_metadata(GGUFFile(path).metadata, chat_template=template)


def _read_template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the chat template {path} cannot be read",
            why=f"{error}",
            fix="Give --chat-template a jinja file in UTF-8",
        ) from error
