"""Text to token ids and back: tokenisers, chat templates, incremental detokenisation.

Knows: tokeniser files, GGUF tokeniser metadata, jinja chat templates.
Does not know: models, requests, scheduling.

Invariants:
    Incremental detokenisation never emits half a character, and its pieces joined equal the
    decoding of all ids at once.
    A chat template runs in a sandbox and cannot reach Python.
"""

from evenflow.tokenization.loading import load_tokenizer
from evenflow.tokenization.tokenizer import Tokenizer

__all__ = ["Tokenizer", "load_tokenizer"]
