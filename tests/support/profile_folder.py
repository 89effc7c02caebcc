"""Small folders of measured tables, and where the real ones are."""

from __future__ import annotations

import csv
import gzip
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

LAYERS = {"embedding": 1, "final_layernorm": 1, "layernorm": 2, "qkv_proj": 1, "down_proj": 1}
"""Layers of the small tables, and how often a step (the first two) or a layer passes them."""

KEY = {"gpu": "GPU", "model": "Tiny-1B", "tp": "1"}


def real_profiles() -> Path:
    """Return the folder of real tables; skips the test where it is absent."""
    data = os.environ.get("EVENFLOW_TEST_DATA")
    root = Path(data) if data else Path(__file__).parents[3] / "shared" / "data"
    folder = root / "perf_profiles"
    if not folder.is_dir():
        pytest.skip(f"no measured tables at {folder}; EVENFLOW_TEST_DATA names their parent folder")
    return folder


def write_table(folder: Path, name: str, rows: Iterable[Mapping[str, object]]) -> None:
    """Write rows as NAME.csv.gz."""
    rows = list(rows)
    with gzip.open(folder / f"{name}.csv.gz", "wt", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def attention_us(chunk: int, history: int, decodes: int, context: int) -> float:
    """A law for attention: pairs of the chunk, entries of the decodes, and a little for both."""
    pairs = chunk * (history + chunk / 2)
    both = 3.0 if chunk and decodes else 0.0
    return 5.0 + 0.01 * pairs + 0.02 * decodes * context + both


def write_layer_tables(folder: Path, *, experts: bool = False, tp: int = 1) -> None:
    """Write layer tables of Tiny-1B: simple laws with made-up coefficients."""
    key = KEY | {"tp": str(tp)}
    write_table(
        folder,
        "vllm_layer_dense",
        [
            {**key, "layer": layer, "tokens": n, "time_us": 10 + n * (index + 1) / 10}
            for index, layer in enumerate(LAYERS)
            for n in (1, 2, 8, 64)
        ],
    )
    write_table(
        folder,
        "vllm_layer_per_sequence",
        [
            {**key, "layer": layer, "sequences": n, "time_us": base + n}
            for layer, base in (("lm_head", 100), ("sampler", 20))
            for n in (1, 4, 16)
        ],
    )
    names = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
    batches = [(0, 0, n, d) for n in (1, 2, 4, 8) for d in (16, 32, 48, 64)]
    for chunk in (16, 32, 64):
        for history in (0, 16, 32, 64):
            batches.append((chunk, history, 0, 0))
            # As many decodes as there are seats leave none for a chunk.
            batches += [(chunk, history, n, d) for n in (1, 2, 4) for d in (16, 32, 64)]
    write_table(
        folder,
        "vllm_layer_attention",
        [{**key, **dict(zip(names, b, strict=True)), "time_us": attention_us(*b)} for b in batches],
    )
    if experts:
        write_table(
            folder,
            "vllm_layer_moe",
            [
                {**KEY, "tokens": n, "activated_experts": touched, "time_us": 7 * touched + n}
                for n in (1, 4, 16, 64)
                for touched in (2, 4, 8)
                if touched <= 2 * n
            ],
        )
