"""Embeddings of real models: all-MiniLM-L6-v2, and SmolLM2's mean hidden state."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from evenflow import LLM, SamplingParams
from evenflow.config import load_config
from evenflow.models.sources import resolve

pytestmark = pytest.mark.model

CAT, KITTEN, STOCKS, SHARES = TEXTS = [
    "A cat is sleeping on the sofa.",
    "The kitten naps on a couch.",
    "Stock markets fell sharply on Monday.",
    "Shares dropped at the start of the week, wiping out last month's gains.",
]


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(
        "smollm2", num_blocks_override=64, max_model_len=512, embedding_model="all-minilm-l6-v2"
    )


def test_sentence_embeddings_put_like_meanings_close_together(llm: LLM) -> None:
    vectors = np.array(llm.embed(TEXTS))
    assert vectors.shape == (4, 384)
    similarity = vectors @ vectors.T
    likes = [similarity[0, 1], similarity[2, 3]]
    unlikes = similarity[:2, 2:]
    assert min(likes) > 0.5 > 0.2 > unlikes.max()


@torch.inference_mode()
def test_sentence_embeddings_equal_transformers(llm: LLM) -> None:
    path = resolve("all-minilm-l6-v2", cache_dir=load_config({}).config.paths.cache).path
    model = transformers.BertModel.from_pretrained(path, attn_implementation="eager").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    texts = [*TEXTS, "Größe, naïve café, 東京, 😀 unbelievably!", "word " * 250]
    for text, vector in zip(texts, llm.embed(texts), strict=True):
        ids = tokenizer(text, truncation=False, padding=False, return_tensors="pt")
        mean = model(**ids).last_hidden_state[0].mean(dim=0)
        assert vector == pytest.approx((mean / mean.norm()).tolist(), abs=1e-5)


def test_language_model_embeds_while_it_generates(smollm2: LLM) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=16)
    alone = smollm2.generate("The capital of France is", params)[0].outputs[0].token_ids
    vectors = np.array(smollm2.embed(TEXTS))
    assert vectors.shape == (4, smollm2.runtime.spec.hidden_size)
    stream = smollm2.stream("The capital of France is", params)
    tokens = [next(stream)[1].token_id]
    assert (np.array(smollm2.embed(TEXTS)) == vectors).all()
    tokens += [delta.token_id for _, delta in stream]
    assert tokens == alone
