"""Tokenisers from the metadata of a GGUF file.

Knows: the `tokenizer.*` keys of GGUF, how byte-level and sentencepiece BPE are built from them.
Does not know: how the file is read.

Invariants:
    Token ids are the positions in `tokenizer.ggml.tokens`, whatever else the file says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, processors

from evenflow.core.errors import ModelFormatError, UnsupportedModelError
from evenflow.tokenization.pretokenization import word_split
from evenflow.tokenization.spelling import SPACE_MARK
from evenflow.tokenization.tokenizer import SpecialTokens, Tokenizer

# tokenizer.ggml.token_type, as far as it matters here.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4

_NAMED_IDS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


def from_gguf_metadata(
    metadata: Mapping[str, object], *, chat_template: str | None = None
) -> Tokenizer:
    """Build the tokeniser that a GGUF file describes.

    Args:
        metadata: the file's key-value pairs; arrays as lists or numpy arrays.
        chat_template: used instead of the file's own.

    Raises:
        ModelFormatError: keys are missing or contradict each other.
        UnsupportedModelError: a kind of tokeniser that evenflow does not have.
    """
    vocabulary = _Vocabulary(metadata)
    builders = {"gpt2": _byte_level, "llama": _sentencepiece}
    kind = vocabulary.text("model", "")
    if kind not in builders:
        raise UnsupportedModelError(
            f"the tokeniser model {kind!r} is unknown",
            why=f"tokenizer.ggml.model must be one of {', '.join(sorted(builders))}",
            fix="Use the model's original directory with its tokenizer.json",
        )
    try:
        backend, adds_bos = builders[kind](vocabulary)
        added = vocabulary.added_tokens()
        # A token that was respelt has no id under its written form and must not get a new one.
        backend.add_tokens(
            [token for token in added if backend.token_to_id(token.content) is not None]
        )
    except (ModelFormatError, UnsupportedModelError):
        raise
    except Exception as error:  # tokenizers raises nothing more precise
        raise _damaged(f"{error}") from error
    _surround(backend, vocabulary, adds_bos)
    own_template = metadata.get("tokenizer.chat_template")
    if chat_template is None and isinstance(own_template, str):
        chat_template = own_template
    return Tokenizer(backend, vocabulary.special_tokens(), chat_template)


class _Vocabulary:
    """The `tokenizer.ggml.*` keys, checked as they are read."""

    def __init__(self, metadata: Mapping[str, object]) -> None:
        self._metadata = metadata
        self.tokens = self.strings("tokens")
        if not self.tokens:
            raise _damaged("tokenizer.ggml.tokens is missing or empty")
        self.types = self.numbers("token_type") or [_NORMAL] * len(self.tokens)

    def text(self, key: str, default: str) -> str:
        value = self._metadata.get(f"tokenizer.ggml.{key}", default)
        if not isinstance(value, str):
            raise _damaged(f"tokenizer.ggml.{key} is {value!r}, not text")
        return value

    def flag(self, key: str, default: bool) -> bool:
        return bool(self._metadata.get(f"tokenizer.ggml.{key}", default))

    def token_id(self, key: str) -> int | None:
        value = self._metadata.get(f"tokenizer.ggml.{key}")
        if value is None:
            return None
        token_id = int(str(value)) if str(value).isdecimal() else -1
        if not 0 <= token_id < len(self.tokens):
            raise _damaged(f"tokenizer.ggml.{key} is {value}, beyond {len(self.tokens)} tokens")
        return token_id

    def strings(self, key: str) -> list[str]:
        value = self._metadata.get(f"tokenizer.ggml.{key}")
        return [str(item) for item in value] if isinstance(value, Sequence) else []

    def merges(self) -> list[tuple[str, str]] | None:
        pairs = [tuple(merge.split(" ")) for merge in self.strings("merges")]
        if any(len(pair) != 2 for pair in pairs):
            raise _damaged("tokenizer.ggml.merges has an entry that is not a pair")
        return [(left, right) for left, right in pairs] or None

    def added_tokens(self) -> list[AddedToken]:
        """Return the tokens that are found in text before any cutting or merging."""
        named = {self.token_id(key) for key in _NAMED_IDS.values()} - {None}
        return [
            AddedToken(token, normalized=False, special=kind != _USER_DEFINED)
            for token_id, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True))
            if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED) or token_id in named
        ]

    def special_tokens(self) -> SpecialTokens:
        return SpecialTokens(
            bos_id=self.token_id("bos_token_id"),
            eos_id=self.token_id("eos_token_id"),
            names={
                name: self.tokens[token_id]
                for name, key in _NAMED_IDS.items()
                if (token_id := self.token_id(key)) is not None
            },
        )

    def numbers(self, key: str) -> list[float] | None:
        value = self._metadata.get(f"tokenizer.ggml.{key}")
        if value is None:
            return None
        items = value.tolist() if isinstance(value, np.ndarray) else value
        if not isinstance(items, list):
            raise _damaged(f"tokenizer.ggml.{key} is not an array")
        if len(items) != len(self.tokens):
            raise _damaged(
                f"tokenizer.ggml.{key} has {len(items)} entries for {len(self.tokens)} tokens"
            )
        return items


def _byte_level(vocabulary: _Vocabulary) -> tuple[tokenizers.Tokenizer, bool]:
    """Build byte-level BPE; the merges are in the file."""
    split = word_split(vocabulary.text("pre", "default"))
    merges = vocabulary.merges()
    if merges is None:
        raise _damaged("tokenizer.ggml.merges is missing")
    ids = {token: token_id for token_id, token in enumerate(vocabulary.tokens)}
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=ids, merges=merges, ignore_merges=split.ignores_merges)
    )
    if split.is_nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = split.pre_tokenizer()
    backend.decoder = decoders.ByteLevel()
    return backend, split.adds_bos


def _sentencepiece(vocabulary: _Vocabulary) -> tuple[tokenizers.Tokenizer, bool]:
    """Build sentencepiece BPE: U+2581 for spaces, `<0xNN>` tokens for characters it lacks."""
    tokens = _with_marked_spaces(vocabulary.tokens)
    unknown_id = vocabulary.token_id("unknown_token_id")
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab={token: token_id for token_id, token in enumerate(tokens)},
            merges=vocabulary.merges() or _implied_merges(vocabulary, tokens),
            unk_token=None if unknown_id is None else tokens[unknown_id],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    to_marks = normalizers.Replace(" ", SPACE_MARK)
    steps = [decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    if vocabulary.flag("add_space_prefix", True):
        # As sentencepiece does: always one space, also before a text that begins with one.
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE_MARK), to_marks])
        steps.append(decoders.Strip(content=" ", left=1, right=0))
    else:
        backend.normalizer = to_marks
    backend.decoder = decoders.Sequence(steps)
    return backend, True


def _with_marked_spaces(tokens: list[str]) -> list[str]:
    """Respell tokens that are runs of spaces, as Gemma's files hold them.

    Text reaches the merges with marks for spaces. A file that has the marked form as well means
    something else by the plain one.
    """
    known = set(tokens)
    return [
        token if token.strip(" ") or (marked := SPACE_MARK * len(token)) in known else marked
        for token in tokens
    ]


def _implied_merges(vocabulary: _Vocabulary, tokens: list[str]) -> list[tuple[str, str]]:
    """List the merges that a scored vocabulary implies, the most wanted first.

    Sentencepiece joins the neighbours whose union has the best score. As a list of merges that is
    every way to cut a token into two tokens, in order of the token's score; of one token's cuts,
    the longest left part first, as published conversions do. User-defined tokens come before all.
    """
    scores = vocabulary.numbers("scores")
    if scores is None:
        raise _damaged("tokenizer.ggml.scores is missing, and there are no merges")
    order = sorted(
        (-math.inf if kind == _USER_DEFINED else -score, token_id)
        for token_id, (kind, score) in enumerate(zip(vocabulary.types, scores, strict=True))
        if kind in (_NORMAL, _USER_DEFINED)
    )
    known = dict.fromkeys(tokens[token_id] for _, token_id in order)
    return [
        (left, right)
        for token in known
        for cut in range(len(token) - 1, 0, -1)
        if (right := token[cut:]) in known and (left := token[:cut]) in known
    ]


def _surround(backend: tokenizers.Tokenizer, vocabulary: _Vocabulary, adds_bos: bool) -> None:
    """Put bos before and eos after an encoded text, where the file asks for it."""

    def edge(name: str, default: bool) -> list[tuple[str, int]]:
        token_id = vocabulary.token_id(f"{name}_token_id")
        if token_id is None or not vocabulary.flag(f"add_{name}_token", default):
            return []
        return [(vocabulary.tokens[token_id], token_id)]

    before, after = edge("bos", adds_bos), edge("eos", False)
    if before or after:
        backend.post_processor = processors.TemplateProcessing(
            single=[*(token for token, _ in before), "$A", *(token for token, _ in after)],
            special_tokens=before + after,
        )


def _damaged(why: str) -> ModelFormatError:
    return ModelFormatError(
        "the file's tokeniser cannot be used",
        why=why,
        fix="Fetch the file again, or use the model's directory with its tokenizer.json",
    )
