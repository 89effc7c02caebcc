"""Small tokenisers of both spellings, built by hand or trained on a few lines."""

from __future__ import annotations

import json
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

MARK = "\u2581"
LINES = [
    "The quick brown fox jumps over the lazy dog, 1234 times.",
    "def push(self, token_id):\n    return self._table[token_id]\n",
    "Größe, naïve café, Ελλάδα, Привет мир, こんにちは世界, 안녕하세요, नमस्ते, مرحبا",
    "😀 🎉 👍 the the the of of and and in in to to",
]


def byte_level_backend() -> tokenizers.Tokenizer:
    """Train byte-level BPE with two special tokens and one plain added token."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|begin|>", "<|im_start|>"],
        show_progress=False,
    )
    backend.train_from_iterator(LINES, trainer)
    backend.add_tokens([AddedToken("<tool call>", normalized=False)])
    return backend


def sentencepiece_backend(*, add_space_prefix: bool) -> tokenizers.Tokenizer:
    """Train BPE on marked spaces, with a token for each byte."""
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    steps: list[normalizers.Normalizer] = [normalizers.Replace(" ", MARK)]
    decoding: list[decoders.Decoder] = [
        decoders.Replace(MARK, " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    if add_space_prefix:
        steps.insert(0, normalizers.Prepend(MARK))
        decoding.append(decoders.Strip(content=" ", left=1, right=0))
    backend.normalizer = normalizers.Sequence(steps)
    backend.decoder = decoders.Sequence(decoding)
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<unk>", "<s>", "</s>", *byte_tokens],
        limit_alphabet=60,
        show_progress=False,
    )
    backend.train_from_iterator(LINES, trainer)
    return tokenizers.Tokenizer.from_str(_without_added(backend.to_str(), byte_tokens))


def gguf_metadata(backend: tokenizers.Tokenizer, **entries: Any) -> dict[str, Any]:
    """Describe a byte-level `backend` as the metadata of a GGUF file."""
    model = json.loads(backend.to_str())["model"]
    added = backend.get_added_tokens_decoder()
    tokens = [backend.id_to_token(token_id) for token_id in range(backend.get_vocab_size())]
    types = [
        1 if token_id not in added else 3 if added[token_id].special else 4
        for token_id in range(len(tokens))
    ]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in model["merges"]],
        **{f"tokenizer.ggml.{key}": value for key, value in entries.items()},
    }


def _without_added(description: str, tokens: list[str]) -> str:
    """Leave byte tokens in the vocabulary only; trainers make every given token a special one."""
    content = json.loads(description)
    content["added_tokens"] = [
        entry for entry in content["added_tokens"] if entry["content"] not in tokens
    ]
    return json.dumps(content)
