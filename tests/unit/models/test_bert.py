"""Sentence vectors equal those made with transformers, whatever shares the batch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from evenflow.core.errors import (
    ContextLengthError,
    EvenflowError,
    InvalidRequestError,
    ModelFormatError,
    UnsupportedModelError,
)
from evenflow.execution.kernels.cpu_ops import CpuOps
from evenflow.execution.kernels.torch_ops import TorchOps
from evenflow.models.sentence import SentenceEncoder
from evenflow.models.sources import ModelFiles

VOCAB_SIZE, MAX_TOKENS = 90, 40
MEAN, FIRST = "pooling_mode_mean_tokens", "pooling_mode_cls_token"
TEXTS = [
    np.random.default_rng(length).integers(0, VOCAB_SIZE, length).tolist()
    for length in (1, 2, 7, 7, 16, 33, MAX_TOKENS)
]


@pytest.fixture(scope="module")
def reference() -> transformers.BertModel:
    config = transformers.BertConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    model = transformers.BertModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "LayerNorm.weight" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
            else:
                parameter.normal_(std=0.15)
    return model


@pytest.fixture
def directory(reference: transformers.BertModel, tmp_path: Path) -> Path:
    """Return the model as sentence-transformers saves one."""
    reference.save_pretrained(tmp_path)
    write_pooling(tmp_path, {MEAN: True, FIRST: False})
    return tmp_path


def write_pooling(directory: Path, modes: dict[str, bool]) -> None:
    (directory / "1_Pooling").mkdir(exist_ok=True)
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(modes))


def load(directory: Path) -> SentenceEncoder:
    return SentenceEncoder.load(ModelFiles("hf", directory, "tiny"), CpuOps())


@torch.inference_mode()
def hidden_states(reference: transformers.BertModel, text: list[int]) -> torch.Tensor:
    return reference(torch.tensor([text])).last_hidden_state[0]


def test_encode_equals_transformers_mean_pooled(
    reference: transformers.BertModel, directory: Path
) -> None:
    vectors = load(directory).encode(TEXTS)
    assert (vectors.shape, vectors.dtype) == ((len(TEXTS), 48), np.float32)
    for vector, text in zip(vectors, TEXTS, strict=True):
        mean = hidden_states(reference, text).mean(dim=0).numpy()
        assert vector == pytest.approx(mean, abs=1e-5)


def test_encode_takes_the_first_token_when_the_model_says_so(
    reference: transformers.BertModel, directory: Path
) -> None:
    write_pooling(directory, {MEAN: False, FIRST: True})
    for vector, text in zip(load(directory).encode(TEXTS), TEXTS, strict=True):
        assert vector == pytest.approx(hidden_states(reference, text)[0].numpy(), abs=1e-5)


def test_encode_gives_a_text_the_same_bits_alone_and_in_company(directory: Path) -> None:
    encoder = load(directory)
    together = encoder.encode(TEXTS)
    for vector, text in zip(together, TEXTS, strict=True):
        assert encoder.encode([text])[0].tobytes() == vector.tobytes()


def test_encode_does_not_depend_on_the_operations(directory: Path) -> None:
    portable = SentenceEncoder.load(ModelFiles("hf", directory, "tiny"), TorchOps())
    assert portable.encode(TEXTS) == pytest.approx(load(directory).encode(TEXTS), abs=1e-5)


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ([], InvalidRequestError, "at least one"),
        ([VOCAB_SIZE], InvalidRequestError, f"0 to {VOCAB_SIZE - 1}"),
        ([-1], InvalidRequestError, f"0 to {VOCAB_SIZE - 1}"),
        ([1.0], InvalidRequestError, "tokens of the sentence model"),
        ([1] * (MAX_TOKENS + 1), ContextLengthError, f"{MAX_TOKENS + 1} tokens.*{MAX_TOKENS}"),
    ],
)
def test_check_refuses_what_the_model_cannot_read(
    directory: Path, text: list[Any], error: type[EvenflowError], words: str
) -> None:
    encoder = load(directory)
    encoder.check([0, VOCAB_SIZE - 1] * (MAX_TOKENS // 2))
    with pytest.raises(error, match=words):
        encoder.check(text)


def rewrite(directory: Path, **changes: object) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | changes))


def write_modules(directory: Path) -> None:
    kinds = ["sentence_transformers.models.Transformer", "sentence_transformers.models.Dense"]
    (directory / "modules.json").write_text(json.dumps([{"type": kind} for kind in kinds]))


REFUSED: dict[str, tuple[Callable[[Path], None], type[EvenflowError], str]] = {
    "another architecture": (
        lambda path: rewrite(path, model_type="llama"),
        UnsupportedModelError,
        "'llama', not 'bert'",
    ),
    "relative positions": (
        lambda path: rewrite(path, position_embedding_type="relative_key"),
        UnsupportedModelError,
        "relative_key",
    ),
    "no number of layers": (
        lambda path: rewrite(path, num_hidden_layers=None),
        ModelFormatError,
        "does not describe a BERT",
    ),
    "tensors of another shape": (
        lambda path: rewrite(path, intermediate_size=81),
        ModelFormatError,
        "does not hold the tensors",
    ),
    "a dense layer on top": (write_modules, UnsupportedModelError, "Dense"),
    "modules that are no list": (
        lambda path: (path / "modules.json").write_text("[3]") and None,
        ModelFormatError,
        "modules.json",
    ),
    "maximum pooling": (
        lambda path: write_pooling(path, {"pooling_mode_max_tokens": True}),
        UnsupportedModelError,
        "pooling_mode_max_tokens",
    ),
    "two ways at once": (
        lambda path: write_pooling(path, {MEAN: True, FIRST: True}),
        UnsupportedModelError,
        FIRST,
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_load_refuses_models_that_it_would_run_wrongly(directory: Path, case: str) -> None:
    change, error, words = REFUSED[case]
    change(directory)
    with pytest.raises(error, match=words):
        load(directory)


def test_load_refuses_a_gguf_file(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"m\.gguf is no sentence model"):
        SentenceEncoder.load(ModelFiles("gguf", tmp_path, "m.gguf"), TorchOps())
