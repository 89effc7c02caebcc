"""Real GGUF files: headers as gguf-py reads them, weights and greedy tokens as transformers has.

transformers dequantises the same weights, so that its tokens are ours.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from evenflow import LLM, SamplingParams
from evenflow.config import load_config
from evenflow.core.gguf_file import GGUFFile
from evenflow.models.sources import ModelFiles, resolve
from evenflow.models.weights.open import open_checkpoint

pytestmark = pytest.mark.model

TENSORS = {
    "smollm2": ["self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj", "input_layernorm"],
    "gemma3-270m": [
        "self_attn.q_proj",
        "self_attn.q_norm",
        "pre_feedforward_layernorm",
        "mlp.up_proj",
    ],
}
NUM_TOKENS = 64
CHAT = "chat: "
PROMPTS = {
    "one word": "The",
    "one letter": "a",
    "one emoji": "🎉",
    "story": "The lighthouse keeper had not spoken to anyone for eleven days when, on the twelfth,",
    "news": "OSLO, Tuesday - The city council voted last night to close two of its bridges to",
    "recipe": "Pea soup for four\n\nIngredients:\n- 300 g split peas\n- 1 onion\n-",
    "numbered list": "Five things to pack for a week in the mountains:\n1. A rain jacket\n2.",
    "python": 'def merge(left: list[int], right: list[int]) -> list[int]:\n    """Merge two',
    "sql": "SELECT name, COUNT(*) AS num_orders\nFROM customers\nJOIN orders ON",
    "json": '{"name": "Ada", "born": 1815, "languages": ["en", "fr"], "works": [{"title":',
    "sums": "12 + 30 = 42\n7 * 8 = 56\n100 - 1 = 99\n15 + 16 =",
    "proof": "Theorem. The square root of 2 is irrational.\nProof. Suppose that",
    "german": "Der Zug nach München hatte Verspätung, und auf dem Bahnsteig",
    "french": "Il était une fois, dans un petit village près de la mer,",
    "spanish": "Las tres reglas más importantes de la cocina son",
    "japanese": "むかしむかし、あるところに、",
    "russian": "Однажды зимним утром",
    "chat about facts": CHAT + "Why is the sky blue? Answer in two sentences.",
    "chat about code": CHAT + "Write a shell command that counts the lines of all .txt files.",
    "chat with emoji": CHAT + "Tell me about 🐙 in three bullet points 😊",
}

Answers = dict[str, tuple[list[int], list[int]]]


@pytest.fixture(
    scope="module", params=["smollm2", pytest.param("gemma3-270m", marks=pytest.mark.slow)]
)
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    """A model. gguf-py, with which transformers reads too, takes ten seconds: let it read once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "GGUFReader", cache(gguf.GGUFReader))
        yield request.param


@pytest.fixture(scope="module")
def path(name: str) -> Path:
    return resolve(name, cache_dir=load_config().config.paths.cache).path


@pytest.fixture(scope="module")
def answers(name: str) -> Answers:
    """Each prompt, by its title, and the greedy tokens that we continue it with."""
    llm = LLM(name, linear="exact", num_blocks_override=256, max_model_len=512)
    prompts = [encode(llm, prompt) for prompt in PROMPTS.values()]
    params = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
    found = [output.outputs[0].token_ids for output in llm.generate(prompts, params)]
    del llm
    gc.collect()
    return dict(zip(PROMPTS, zip(prompts, found, strict=True), strict=True))


@pytest.fixture(scope="module")
def reference(path: Path, answers: Answers) -> torch.nn.Module:
    """transformers' model, loaded when ours is gone: both at once would take twice the memory."""
    return AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )


def encode(llm: LLM, prompt: str) -> list[int]:
    if prompt.startswith(CHAT):
        return llm.render_chat([{"role": "user", "content": prompt.removeprefix(CHAT)}])
    return llm.tokenizer.encode(prompt)


@torch.inference_mode()
def greedy(model: torch.nn.Module, prompt: list[int], tokens: list[int]) -> list[int]:
    """Return the likeliest token after the prompt and after each of `tokens` but the last.

    When the answer is `tokens`, they are what greedy decoding gives, by induction; one pass over
    them takes a small part of the time of decoding them.
    """
    logits = model(torch.tensor([prompt + tokens[:-1]]), logits_to_keep=len(tokens)).logits
    return logits[0].argmax(dim=-1).tolist()


def test_gguf_file_equals_reference_on_real_model(path: Path) -> None:
    ours, theirs = GGUFFile(path), gguf.GGUFReader(str(path))
    fields = {key: field for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert list(ours.metadata) == list(fields)
    for key, field in fields.items():
        value = ours.metadata[key]
        assert (value.tolist() if isinstance(value, np.ndarray) else value) == field.contents(), key
    assert [
        (tensor.name, tensor.type.name, list(tensor.shape), tensor.offset, tensor.num_bytes)
        for tensor in ours.tensors.values()
    ] == [
        (t.name, t.tensor_type.name, t.shape.tolist()[::-1], t.data_offset, t.n_bytes)
        for t in theirs.tensors
    ]


@pytest.mark.slow
def test_checkpoint_weights_equal_transformers_on_real_model(
    name: str, path: Path, reference: torch.nn.Module
) -> None:
    weights = open_checkpoint(ModelFiles("gguf", path, name)).weights()
    expected = reference.state_dict()
    for tensor in TENSORS[name]:
        full_name = f"model.layers.3.{tensor}.weight"
        assert torch.equal(weights.tensor(full_name), expected[full_name]), full_name
    for full_name in ("model.norm.weight", "model.embed_tokens.weight"):
        assert torch.equal(weights.tensor(full_name), expected[full_name]), full_name


@pytest.mark.slow
def test_greedy_tokens_equal_transformers(answers: Answers, reference: torch.nn.Module) -> None:
    assert len(answers) == len(PROMPTS)
    for title, (prompt, tokens) in answers.items():
        assert len(tokens) == NUM_TOKENS
        assert tokens == greedy(reference, prompt, tokens), title
