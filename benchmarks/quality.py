"""How far quantised computing is from fp32, on real text.

The same text goes through the model twice, in fp32 (`--linear exact`) and as asked, in windows of
512 tokens, and the distributions over the next token are compared at every position. The text is
the language reference that every Python carries (`pydoc_data.topics`): English prose.

The last line on stdout is one JSON object:
    kl: mean over all positions of KL(fp32 || quantised), in nats.
    top1: share of positions where both think the same token likeliest.
    perplexity: of the text, in fp32 and quantised.
    num_tokens: positions compared.

Usage: python benchmarks/quality.py [--quick] [--linear w4a8] [--kv-cache-dtype auto]
           [--model smollm2] [--tokens 20000]
"""

from __future__ import annotations

import argparse
import json
import math
import pydoc_data.topics
import sys
import time
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F

from evenflow.config import load_config
from evenflow.engine.backends import choose_backend
from evenflow.execution.attention import Attention
from evenflow.execution.batch import ForwardBatch
from evenflow.execution.model import CausalLM
from evenflow.execution.torch.kv_store import KVStore
from evenflow.models.registry import build_model
from evenflow.models.sources import resolve
from evenflow.models.weights.open import open_checkpoint
from evenflow.tokenization import load_tokenizer

WINDOW_TOKENS = 512
TOKENS, QUICK_TOKENS = 20_000, 2_000
_ROWS = 64  # positions whose logits are held at once


@dataclass(frozen=True)
class Quality:
    """How close two distributions are, over many positions of a text.

    Attributes:
        kl: mean of KL(fp32 || quantised), in nats.
        top1: share of positions where both have the same likeliest token.
        perplexity: of the text, by way of computing.
        num_tokens: positions compared.
    """

    kl: float
    top1: float
    perplexity: dict[str, float]
    num_tokens: int


class Scorer:
    """A model that scores every position of a text.

    Args:
        model: a short name, a path or a Hugging Face id.
        linear: as the setting `--linear`.
        kv_cache_dtype: as the setting `--kv-cache-dtype`.
    """

    def __init__(self, model: str, linear: str, kv_cache_dtype: str = "auto") -> None:
        settings = {"model": model, "linear": linear, "kv_cache_dtype": kv_cache_dtype}
        config = load_config(settings).config
        cache = config.paths.cache
        checkpoint = open_checkpoint(resolve(model, cache_dir=cache))
        spec = checkpoint.spec
        backend = choose_backend(config, spec, is_quantised=checkpoint.is_quantised())
        weights = checkpoint.weights(linear=backend.linear, weight_cache_dir=cache / "weights")
        self._model: CausalLM = build_model(spec, backend.place(weights), backend.ops())
        store = KVStore(
            1,
            spec.num_layers,
            spec.num_kv_heads,
            spec.head_dim,
            WINDOW_TOKENS,
            dtype=backend.kv_dtype,
        )
        self._attention: Attention = backend.attention(store)

    def hidden(self, window: torch.Tensor) -> torch.Tensor:
        """Return the last hidden states of a window, (num_tokens, hidden_size)."""
        positions = torch.arange(len(window))
        length = len(window)
        batch = ForwardBatch(
            token_ids=window,
            positions=positions,
            slot_mapping=positions,
            query_starts=torch.tensor([0, length], dtype=torch.int32),
            context_lens=torch.tensor([length], dtype=torch.int32),
            block_tables=torch.zeros(1, 1, dtype=torch.int32),
        )
        return self._model.forward(batch, self._attention)

    def log_probabilities(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return those of every token of the vocabulary to come next, (n, vocab_size)."""
        return F.log_softmax(self._model.logits(hidden.contiguous()), dim=-1)


@torch.inference_mode()
def compare(model: str, linear: str, kv_cache_dtype: str, num_tokens: int) -> Quality:
    """Compare `linear` and `kv_cache_dtype` with fp32 on at least `num_tokens` positions."""
    scorers = {"fp32": Scorer(model, "exact"), "quantised": Scorer(model, linear, kv_cache_dtype)}
    windows = text_windows(model, -(-num_tokens // WINDOW_TOKENS))
    divergence, agreed = 0.0, 0
    surprise = dict.fromkeys(scorers, 0.0)
    for number, window in enumerate(windows):
        hidden = {name: scorer.hidden(window) for name, scorer in scorers.items()}
        for first in range(0, WINDOW_TOKENS, _ROWS):
            logs = {
                name: scorer.log_probabilities(hidden[name][first : first + _ROWS])
                for name, scorer in scorers.items()
            }
            ours, theirs = logs["quantised"], logs["fp32"]
            divergence += F.kl_div(ours, theirs, reduction="sum", log_target=True).item()
            agreed += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
            following = window[first + 1 : first + _ROWS + 1]
            for name, rows in logs.items():
                surprise[name] -= rows[torch.arange(len(following)), following].sum().item()
        if number % 8 == 7:
            print(f"compared {(number + 1) * WINDOW_TOKENS} tokens", file=sys.stderr)
    count = windows.numel()
    num_predicted = count - len(windows)
    return Quality(
        kl=divergence / count,
        top1=agreed / count,
        perplexity={name: math.exp(total / num_predicted) for name, total in surprise.items()},
        num_tokens=count,
    )


def text_windows(model: str, num_windows: int) -> torch.Tensor:
    """Return windows spread over the whole text, (num_windows, WINDOW_TOKENS), int64."""
    cache = load_config({}).config.paths.cache
    tokenizer = load_tokenizer(resolve(model, cache_dir=cache).path)
    topics = pydoc_data.topics.topics
    ids = torch.tensor(tokenizer.encode("\n\n".join(topics[name] for name in sorted(topics))))
    every = ids[: len(ids) // WINDOW_TOKENS * WINDOW_TOKENS].view(-1, WINDOW_TOKENS)
    if num_windows > len(every):
        raise SystemExit(f"the text has {every.numel()} tokens only")
    return every[torch.arange(num_windows) * len(every) // num_windows]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer tokens, under 50 s")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--linear", default="w4a8", choices=["exact", "w4a8", "w8a8"])
    parser.add_argument(
        "--kv-cache-dtype", default="auto", choices=["auto", "fp32", "bf16", "int8"]
    )
    parser.add_argument("--tokens", type=int, help=f"positions to compare, {TOKENS} by default")
    args = parser.parse_args()
    num_tokens = args.tokens or (QUICK_TOKENS if args.quick else TOKENS)
    started = time.perf_counter()
    quality = compare(args.model, args.linear, args.kv_cache_dtype, num_tokens)
    print(f"took {time.perf_counter() - started:.0f} s", file=sys.stderr)
    print(json.dumps({name: rounded(value) for name, value in asdict(quality).items()}))


def rounded(value: object) -> object:
    """Return figures as they are printed."""
    if isinstance(value, dict):
        return {name: rounded(entry) for name, entry in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
