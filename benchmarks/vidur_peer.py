"""Vidur (MLSys 2024) beside evenflow: installed apart, same trace, same step times.

Vidur predicts the times of operators from profiled ones with random forests, and keeps the
predictions in tables. Its package has no profiles: it downloads them. Here they are written, in its
format and into its cache, from the step times of a cost model of evenflow, so that both simulate
the same machine:

    all operators but attention, n tokens     a chunk of n tokens that starts a prompt
    attention of a chunk, of decodes          what a step takes beyond that
"""

from __future__ import annotations

import csv
import json
import lzma
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from evenflow.execution.costs import MeasuredStep
from evenflow.simulation.instance import SimulationSettings
from evenflow.simulation.shapes import ModelShape

MODEL, DEVICE, NODE = "meta-llama/Llama-3-8B", "a100", "a100_dgx"
DATE = "2024-01-01"  # Vidur plays one day of a trace
PROFILE, NETWORK = "evenflow/profile", "evenflow/network"
COMMIT = "0" * 40
KV_STEP = 256  # its tables of attention are this coarse
OPERATORS = (
    *("attn_pre_proj", "attn_rope", "attn_post_proj", "mlp_up_proj", "mlp_act", "mlp_down_proj"),
    *("input_layernorm", "post_attention_layernorm", "add"),
)
# One small forest instead of the best of 27 by ten-fold validation: its training is not the point.
FOREST = {"num_estimators": [100], "max_depth": [32], "min_samples_split": [2]}


def install(cache: Path) -> None:
    """Install it into a virtual environment of its own."""
    folder = cache / "peers" / "vidur"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "-q", "vidur"], check=True)


def interpreter(cache: Path) -> Path | None:
    """Return the Python of its environment, None if it is not installed."""
    python = cache / "peers" / "vidur" / "bin" / "python"
    return python if python.exists() else None


class Vidur:
    """An installed Vidur with its profiles.

    Args:
        python: interpreter of its environment.
        folder: where its cache and what it writes go.
        settings: what it is to simulate.
    """

    def __init__(self, python: Path, folder: Path, settings: SimulationSettings) -> None:
        self._python = python
        self._folder = folder
        self._settings = settings

    def write_profiles(self, model: ModelShape, steps: Iterable[MeasuredStep]) -> None:
        """Write step times as profiles of operators.

        Args:
            model: whose steps they are.
            steps: with one chunk or decodes alone; first those that start a prompt.
        """
        per_layer_ms = 1e3 / model.num_layers
        plain_ms: dict[int, float] = {}
        attention = []
        for step in steps:
            shape, step_ms = step.shape, step.seconds * per_layer_ms
            num_tokens = shape.num_tokens
            chunk_tokens = shape.num_chunk_tokens
            if chunk_tokens and shape.num_context_tokens == chunk_tokens:
                plain_ms[num_tokens] = step_ms
            attention_ms = max(0.0, step_ms - plain_ms[num_tokens])
            attention.append(
                {
                    **self._geometry(model),
                    "block_size": self._settings.block_size,
                    "batch_size": shape.num_requests,
                    "kv_cache_size": shape.num_context_tokens // shape.num_requests,
                    "prefill_chunk_size": chunk_tokens,
                    "time_stats.attn_prefill.median": attention_ms if chunk_tokens else 0.0,
                    "time_stats.attn_decode.median": 0.0 if chunk_tokens else attention_ms,
                    "time_stats.attn_kv_cache_save.median": 0.0,
                }
            )
        plain = [
            {
                **self._geometry(model),
                "num_tokens": num_tokens,
                **{f"time_stats.{name}.median": ms / len(OPERATORS) for name in OPERATORS},
            }
            for num_tokens, ms in plain_ms.items()
        ]
        compute = self._dataset("compute", PROFILE, {"model": MODEL, "device_sku": DEVICE})
        _write_table(compute / "mlp.csv.xz", plain)
        _write_table(compute / "attention.csv.xz", attention)
        self._dataset("network", NETWORK, {"sku": NODE})

    def run(self, trace: Path, *, is_recording: bool = False) -> dict[str, float]:
        """Simulate a trace; the first time, train the predictor before.

        Args:
            trace: a file of `trace_row` rows.
            is_recording: keep its metrics of requests and batches, as it does by default.

        Returns:
            what `vidur_driver.py` measured, and whole_s: the process from start to end.
        """
        settings = self._settings
        predictor = {
            "model_profiling_dataset": PROFILE,
            "network_profiling_dataset": NETWORK,
            "cache_dir": str(self._folder / "cache"),
            "kv_cache_prediction_granularity": KV_STEP,
            "prediction_max_tokens_per_request": settings.max_model_len,
            "prediction_max_prefill_chunk_size": settings.max_num_batched_tokens,
            "prediction_max_batch_size": settings.max_num_seqs,
            "attention_decode_batching_overhead_fraction": 0.0,
            "k_fold_cv_splits": 2,
            **FOREST,
        }
        given = {
            "replica": {
                "model_name": MODEL,
                "device": DEVICE,
                "network_device": NODE,
                "num_pipeline_stages": 1,
                "tensor_parallel_size": 1,
            },
            "cache": {"block_size": settings.block_size, "num_blocks": settings.num_blocks},
            "scheduler": {
                "batch_size_cap": settings.max_num_seqs,
                "chunk_size": settings.max_num_batched_tokens,
            },
            "trace": {
                "trace_file": str(trace),
                "date": DATE,
                "prefill_scale_factor": 1.0,
                "time_scale_factor": 1.0,
                "max_tokens": settings.max_model_len,
            },
            "predictor": predictor,
            "metrics": {
                "write_metrics": is_recording,
                "store_plots": False,
                "enable_chrome_trace": False,
                "output_dir": str(self._folder / "output"),
            },
        }
        began_s = time.perf_counter()
        process = subprocess.run(
            [self._python, Path(__file__).with_name("vidur_driver.py")],
            input=json.dumps(given),
            text=True,
            capture_output=True,
            cwd=self._folder,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"},
            check=False,
        )
        if process.returncode:
            raise SystemExit(f"Vidur failed:\n{process.stderr[-3000:]}")
        result: dict[str, float] = json.loads(process.stdout.splitlines()[-1])
        return {**result, "whole_s": time.perf_counter() - began_s}

    def _dataset(self, kind: str, name: str, description: Mapping[str, str]) -> Path:
        """Make a folder that looks as if it had been downloaded from Hugging Face."""
        root = self._folder / "cache" / "profiling_data" / kind
        root /= f"datasets--{name.replace('/', '--')}"
        snapshot = root / "snapshots" / COMMIT
        for folder in (root / "refs", snapshot):
            folder.mkdir(parents=True)
        (root / "refs" / "main").write_text(COMMIT, encoding="ascii")
        (snapshot / "config.json").write_text(json.dumps(description), encoding="ascii")
        return snapshot

    @staticmethod
    def _geometry(model: ModelShape) -> dict[str, Any]:
        """Return the columns by which it finds a model's rows."""
        return {
            "n_head": model.num_heads,
            "n_q_head": model.num_heads,
            "n_kv_head": model.num_kv_heads,
            "n_embd": model.hidden_size,
            "n_expanded_embd": model.intermediate_size,
            "use_gated_mlp": True,
            "vocab_size": model.vocab_size,
            "num_tensor_parallel_workers": 1,
        }


def trace_row(arrival_s: float, num_prompt_tokens: int, num_output_tokens: int) -> dict[str, Any]:
    """Return the columns of its traces."""
    return {
        "Time": arrival_s,
        "PromptTokenCount": num_prompt_tokens,
        "CompletionTokenCount": num_output_tokens,
        "Date": DATE,
    }


def _write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    with lzma.open(path, "wt", encoding="ascii", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
