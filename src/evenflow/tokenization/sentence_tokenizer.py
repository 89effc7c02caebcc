"""The tokeniser of a sentence model: whole texts to ids, never back.

Knows: `tokenizer.json`, and the files that say how long a text may be.
Does not know: the model.
"""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers

from evenflow.core.errors import (
    ContextLengthError,
    InvalidRequestError,
    ModelFormatError,
    ModelNotFoundError,
)

_LENGTH_KEYS = {
    "sentence_bert_config.json": "max_seq_length",
    "tokenizer_config.json": "model_max_length",
    "config.json": "max_position_embeddings",
}


class SentenceTokenizer:
    """Turns a text into the ids that a sentence model reads, markers around it included.

    Args:
        backend: the tokeniser.
        max_num_tokens: longest text, markers included.
    """

    def __init__(self, backend: tokenizers.Tokenizer, max_num_tokens: int) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.max_num_tokens = max_num_tokens

    def encode(self, text: str) -> list[int]:
        """Turn a text into ids.

        Raises:
            InvalidRequestError: it holds lone surrogates, which no encoding can carry.
            ContextLengthError: it is too long, with the numbers; nothing is cut off silently.
        """
        try:
            # Unlike `encode` this lets other threads run meanwhile.
            [encoding] = self._backend.encode_batch([text])
        except (TypeError, UnicodeEncodeError) as error:
            raise InvalidRequestError(
                "the text cannot be encoded",
                param="input",
                why="it must be a string without halves of surrogate pairs",
            ) from error
        ids: list[int] = encoding.ids
        if len(ids) > self.max_num_tokens:
            raise ContextLengthError(
                f"the text has {len(ids)} tokens",
                param="input",
                why=f"the sentence model was made for {self.max_num_tokens}",
                fix="Send it in parts",
            )
        return ids


def load_sentence_tokenizer(path: Path) -> SentenceTokenizer:
    """Build the tokeniser of the sentence model in the directory `path`.

    Raises:
        ModelNotFoundError: there is no tokenizer.json.
        ModelFormatError: a file is damaged.
    """
    file = path / "tokenizer.json"
    if not file.is_file():
        raise ModelNotFoundError(
            f"{path} has no tokeniser",
            why="there is no tokenizer.json",
            fix="Fetch the whole model directory",
        )
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing more precise
        raise ModelFormatError(f"{file} cannot be used", why=f"{error}") from error
    lengths = [_number(path / name, key) for name, key in _LENGTH_KEYS.items()]
    known = [length for length in lengths if length is not None]
    if not known:
        raise ModelFormatError(f"no file in {path} says how long a text may be")
    return SentenceTokenizer(backend, min(known))


def _number(file: Path, key: str) -> int | None:
    """Return a whole number of a JSON file; None without the file or the key."""
    if not file.is_file():
        return None
    try:
        value = json.loads(file.read_bytes()).get(key)
        return None if value is None else int(value)
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelFormatError(f"{file} cannot be used", why=f"{error}") from error
