"""What the GPU back end gives on this machine, beside what the machine can give.

Needs a CUDA GPU with 40 GiB of memory, torch, Triton and what comes with them; neither evenflow nor
a model has to be installed. Everything has the shapes of Llama-3-8B in bf16, with random weights.
Without a GPU it says so, and measures nothing.

    ceilings   a matrix product of 8192 x 8192 x 8192, a copy of 2 GiB on the device
    prefill    attention of whole prompts and of a chunk, against torch's back ends, which get keys
               and values that lie contiguously
    decode     attention of one token each over long contexts, as bytes of keys and values per
               second
    model      decode steps of the engine itself, with scheduler, sampling and read-back
    copies     KV blocks between device and pinned host memory

The last line of stdout is JSON:

- `attention_ratio`: prefill attention, TFLOP/s of ours divided by those of the better of torch's
  back ends, in the worst case (the goal is 0.8);
- `copy_ratio`: decode attention, bytes read per second divided by the bytes read and written per
  second by the copy, in the worst case (the goal is 0.8);
- `decode_ratio`: at batch 32, the time in which the copy's bandwidth would read all weights and all
  KV once, divided by the time of a step (the goal is 0.7);
- `device`, `ceilings` (tflops, copy_tbs), `prefill`, `decode_attention`, `decode`, `copies`: the
  figures they come from, by case;
- `errors`: relative error of attention against float64 by layout, and `same_tokens`: the share of
  tokens that graphs and steps started ahead do not change.
All but `device` are null without a GPU.

Usage: python benchmarks/gpu.py [--quick] [--sweep]
    --quick: fewer cases, under two minutes on a GPU
    --sweep: also time other tile sizes for the attention kernels, and print them
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

NOTHING: dict[str, Any] = dict.fromkeys(
    (
        "attention_ratio",
        "copy_ratio",
        "decode_ratio",
        "device",
        "ceilings",
        "prefill",
        "decode_attention",
        "decode",
        "copies",
        "errors",
        "same_tokens",
    )
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer cases, under two minutes")
    parser.add_argument("--sweep", action="store_true", help="also time other tile sizes")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: nothing measured")
        print(json.dumps(NOTHING))
        return
    torch.manual_seed(0)
    print(json.dumps(measure(quick=options.quick, sweep=options.sweep)))


def measure(*, quick: bool, sweep: bool) -> dict[str, Any]:
    """Return all figures, printing each as it is known."""
    import gpu_attention
    import gpu_decode
    from gpu_copies import copy_rates
    from gpu_timing import ceilings

    device = torch.cuda.get_device_name()
    tops = ceilings()
    print(f"{device}: {tops['tflops']:.0f} TFLOP/s, copies {tops['copy_tbs']:.2f} TB/s", flush=True)
    errors = gpu_attention.errors()
    print(f"attention errors: {errors}", flush=True)
    prefill = gpu_attention.prefill(quick=quick)
    decode_attention = gpu_attention.decode(tops["copy_tbs"], quick=quick)
    if sweep:
        gpu_attention.sweep()
    copies = copy_rates()
    decode, same_tokens = gpu_decode.decode(tops["copy_tbs"], quick=quick)
    return NOTHING | {
        "attention_ratio": min(case["ratio"] for case in prefill.values()),
        "copy_ratio": min(case["copy_ratio"] for case in decode_attention.values()),
        "decode_ratio": decode["32"]["ratio"],
        "device": device,
        "ceilings": tops,
        "prefill": prefill,
        "decode_attention": decode_attention,
        "decode": decode,
        "copies": copies,
        "errors": errors,
        "same_tokens": same_tokens,
    }


if __name__ == "__main__":
    main()
