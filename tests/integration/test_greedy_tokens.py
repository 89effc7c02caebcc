"""Greedy tokens of the real models, against transformers on the same dequantised weights."""

from __future__ import annotations

import gc

import pytest
import torch
from transformers import AutoModelForCausalLM

from evenflow import LLM, SamplingParams
from evenflow.config import load_config
from evenflow.models.sources import resolve

pytestmark = [pytest.mark.model, pytest.mark.slow]

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


@pytest.mark.parametrize("name", ["smollm2", "gemma3-270m"])
def test_greedy_tokens_equal_transformers(name: str) -> None:
    llm = LLM(name, linear="exact", num_blocks_override=256, max_model_len=512)
    prompts = [encode(llm, prompt) for prompt in PROMPTS.values()]
    params = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
    ours = [output.outputs[0].token_ids for output in llm.generate(prompts, params)]
    del llm
    gc.collect()  # both models at once would take twice the memory

    path = resolve(name, cache_dir=load_config().config.paths.cache).path
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    for title, prompt, tokens in zip(PROMPTS, prompts, ours, strict=True):
        assert len(tokens) == NUM_TOKENS
        assert tokens == greedy(model, prompt, tokens), title
