"""`LLM.embed` on random weights, with and without a sentence model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from safetensors.torch import save_file
from tokenizers import models, pre_tokenizers

from evenflow import LLM, SamplingParams
from evenflow.core.errors import ContextLengthError, GenerationError, InvalidRequestError
from evenflow.core.pooling import PoolingParams
from evenflow.models.bert import BertSpec
from support.small_tokenizers import byte_level_backend

TEXTS = ["the quick brown fox", "jumps", "over the lazy dog " * 8]
HIDDEN_SIZE, SENTENCE_SIZE, NUM_POSITIONS = 8, 12, 64


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a language model without weights, for --load-format dummy."""
    path = tmp_path_factory.mktemp("model")
    backend = byte_level_backend()
    backend.save(str(path / "tokenizer.json"))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": backend.get_vocab_size(),
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": 12,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": NUM_POSITIONS,
    }
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def sentence_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sentences")
    vocab = {word: at for at, word in enumerate(["[UNK]", *" ".join(TEXTS).split()])}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(path / "tokenizer.json"))
    config = {
        "model_type": "bert",
        "vocab_size": max(vocab.values()) + 1,
        "hidden_size": SENTENCE_SIZE,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": NUM_POSITIONS,
    }
    (path / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)
    shapes = BertSpec.from_config(config).tensor_shapes()
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(tensors, path / "model.safetensors")
    return path


@pytest.fixture(scope="module")
def llm(model: Path) -> LLM:
    return LLM(str(model), load_format="dummy", num_blocks_override=32)


@pytest.fixture(scope="module")
def llm_with_sentences(model: Path, sentence_model: Path) -> LLM:
    return LLM(
        str(model),
        load_format="dummy",
        num_blocks_override=32,
        embedding_model=str(sentence_model),
    )


@pytest.mark.parametrize("name", ["llm", "llm_with_sentences"])
def test_embed_gives_each_text_a_vector_of_length_one(
    request: pytest.FixtureRequest, name: str
) -> None:
    llm: LLM = request.getfixturevalue(name)
    vectors = llm.embed(TEXTS)
    size = HIDDEN_SIZE if name == "llm" else SENTENCE_SIZE
    assert [len(vector) for vector in vectors] == [size] * len(TEXTS)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0)
    assert [llm.embed(text) for text in TEXTS] == [[vector] for vector in vectors]
    cut = llm.embed(TEXTS[0], PoolingParams(dimensions=2, normalize=False))
    assert len(cut[0]) == 2
    assert cut[0][0] / cut[0][1] == pytest.approx(vectors[0][0] / vectors[0][1], rel=1e-4)


def test_embed_takes_token_ids(llm: LLM, llm_with_sentences: LLM) -> None:
    assert llm.embed([llm.tokenizer.encode(TEXTS[0])]) == llm.embed(TEXTS[0])
    tokenizer = llm_with_sentences.runtime.sentence_tokenizer
    assert tokenizer is not None
    ids = tokenizer.encode(TEXTS[0])
    assert llm_with_sentences.embed([ids]) == llm_with_sentences.embed(TEXTS[0])


@pytest.mark.parametrize("name", ["llm", "llm_with_sentences"])
def test_embed_of_no_texts_is_empty(request: pytest.FixtureRequest, name: str) -> None:
    assert request.getfixturevalue(name).embed([]) == []


def test_embed_leaves_a_running_stream_as_it_would_be_alone(llm: LLM) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
    alone = llm.generate(TEXTS[0], params)[0].outputs[0].token_ids
    vectors = llm.embed(TEXTS)
    stream = llm.stream(TEXTS[0], params)
    tokens = [next(stream)[1].token_id for _ in range(3)]
    assert llm.embed(TEXTS) == vectors
    tokens += [delta.token_id for _, delta in stream]
    assert tokens == alone


@pytest.mark.parametrize("name", ["llm", "llm_with_sentences"])
def test_embed_refuses_what_is_too_long_and_leaves_nothing_behind(
    request: pytest.FixtureRequest, name: str
) -> None:
    llm: LLM = request.getfixturevalue(name)
    with pytest.raises(ContextLengthError, match=f"{NUM_POSITIONS}"):
        llm.embed([TEXTS[0], "fox " * (NUM_POSITIONS + 1)])
    with pytest.raises(InvalidRequestError, match="dimensions is 99"):
        llm.embed(TEXTS, PoolingParams(dimensions=99))
    llm.engine.step()
    assert not llm.engine.has_work


def test_embed_says_why_a_text_failed(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(*_args: object, **_options: object) -> torch.Tensor:
        return torch.full((200, HIDDEN_SIZE), float("nan"))

    monkeypatch.setattr(llm.engine._executor._model, "forward", damaged)  # type: ignore[attr-defined]
    with pytest.raises(GenerationError, match="NaN"):
        llm.embed(TEXTS)
    llm.engine.step()
    assert not llm.engine.has_work
