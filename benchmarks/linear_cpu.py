"""Quantised linears on the CPU against oneDNN's in fp32, and against what the machine could do.

The shapes are those of SmolLM2-135M, its layers in Q4_1 and its vocabulary in Q8_0. Each shape is
run over so many different weights that no cache keeps them, as in a model: with one row the time is
that of reading them from memory. All ways take turns of a few linears. Times are medians.

A step is all of the model's linears: thirty layers for every row, the vocabulary for 32 at most.

The last line of stdout is JSON:

- `us`: microseconds of one linear, by threads, way (an instruction set, or `fp32` for oneDNN),
  shape and number of rows;
- `step_us`: microseconds of a step, by threads, way and number of rows;
- `ratio`: oneDNN's step time divided by ours, likewise (above 1: ours is faster);
- `gb_per_s`, `gop_per_s`: bytes of weights read and operations done (two per multiplication) in a
  step's time, likewise;
- `read_share`, `int8_share`: these, divided by the best that the machine reached with all threads
  when it only read memory, or multiplied large int8 matrices with oneDNN;
- `ceilings`: these two rates.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch

from cpu_ceilings import measure_machine
from evenflow.core.gguf_file import GGML_TYPES, GGMLType
from evenflow.execution.kernels.cpu_ops import CpuOps
from evenflow.execution.kernels.native.library import ISAS, native_kernels
from evenflow.execution.kernels.quantised import Workspace, quantised_linear
from evenflow.execution.ops import Linear, QuantisedRows
from evenflow.models.weights.rounding import round_rows

Q4_1, Q8_0 = GGML_TYPES[3], GGML_TYPES[8]
# Name: type, output features, input features, how many in the model.
SHAPES: dict[str, tuple[GGMLType, int, int, int]] = {
    "qkv": (Q4_1, 960, 576, 30),
    "o": (Q4_1, 576, 576, 30),
    "gate_up": (Q4_1, 3072, 576, 30),
    "down": (Q4_1, 576, 1536, 30),
    "vocabulary": (Q8_0, 49152, 576, 1),
}
MAX_VOCABULARY_ROWS = 32  # as many requests; a prompt needs the logits of its last token only
COLD_BYTES = 80_000_000  # of different weights, more than the caches hold
BURST = 8  # linears that a way runs in its turn, one after the other as in a model
FP32 = "fp32"

# Microseconds by way, shape and rows.
Times = dict[str, dict[str, dict[int, float]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer cases, under 50 s")
    options = parser.parse_args()
    all_threads = torch.get_num_threads()
    machine = measure_machine()
    ceilings = {key: rate for key, rate in asdict(machine).items() if "fp32" not in key}
    print("ceilings", {key: round(rate, 1) for key, rate in ceilings.items()}, file=sys.stderr)
    isas = [isa for isa in ISAS if isa != "portable" and native_kernels(isa) is not None]
    rows = [1, 8, 32, 512] if options.quick else [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
    seconds = 0.8 if options.quick else 2.0
    report: dict[str, dict[str, object]] = {}
    for num_threads in [all_threads] if options.quick else sorted({1, all_threads}):
        torch.set_num_threads(num_threads)
        with torch.inference_mode():
            us = measure_all(isas[-1:] if options.quick else isas, rows, seconds)
        for key, value in summary(us, rows, machine.read_gb_per_s, machine.int8_gop_per_s).items():
            report.setdefault(key, {})[str(num_threads)] = value
    print(json.dumps({**report, "ceilings": ceilings}))


def measure_all(isas: Sequence[str], rows: Sequence[int], seconds: float) -> Times:
    """Return the median time of every way, shape and number of rows."""
    us: Times = {way: {} for way in [*isas, FP32]}
    for shape, (kind, out_features, in_features, _) in SHAPES.items():
        ways = {isa: quantised(isa, kind, out_features, in_features) for isa in isas}
        ways[FP32] = fp32(out_features, in_features)
        for num_rows in rows:
            if shape == "vocabulary" and num_rows > MAX_VOCABULARY_ROWS:
                continue
            x = torch.randn(num_rows, in_features)
            medians = measure(ways, x, seconds)
            for way, median in medians.items():
                us[way].setdefault(shape, {})[num_rows] = median
            rounded = {way: round(median, 1) for way, median in medians.items()}
            print(f"{torch.get_num_threads()} threads", shape, num_rows, rounded, file=sys.stderr)
    return us


def quantised(isa: str, kind: GGMLType, out_features: int, in_features: int) -> list[Linear]:
    """Return linears of our own, all of the same values in different places."""
    kernels = native_kernels(isa)
    assert kernels is not None
    assert kernels.quantised is not None
    workspace = Workspace(kernels.quantised)
    values = torch.randn(out_features, in_features)
    stored = QuantisedRows(kind, round_rows(values, kind), in_features)
    copies = num_copies(stored.rows.numel())
    return [quantised_linear([stored], None, workspace) for _ in range(copies)]


def fp32(out_features: int, in_features: int) -> list[Linear]:
    """Return linears of oneDNN, as the engine uses them for fp32 weights."""
    weight = torch.randn(out_features, in_features)
    return [CpuOps().linear([weight]) for _ in range(num_copies(4 * weight.numel()))]


def num_copies(weight_bytes: int) -> int:
    return max(2, -(-COLD_BYTES // weight_bytes))


def measure(ways: dict[str, list[Linear]], x: torch.Tensor, seconds: float) -> dict[str, float]:
    """Return the median microseconds of each way, all run in turn for about `seconds`."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    for linears in ways.values():
        linears[0](x)
    begin = time.perf_counter()
    turn = 0
    while time.perf_counter() - begin < seconds or turn < 3:
        for way, linears in ways.items():
            burst = [linears[(turn * BURST + i) % len(linears)] for i in range(BURST)]
            start = time.perf_counter()
            for linear in burst:
                linear(x)
            times[way].append((time.perf_counter() - start) / BURST)
        turn += 1
    return {way: statistics.median(found) * 1e6 for way, found in times.items()}


def summary(
    us: Times, rows: Sequence[int], read_rate: float, int8_rate: float
) -> dict[str, object]:
    """Return the report's entries for one number of threads."""
    steps = {way: {n: step(found, n) for n in rows} for way, found in us.items()}
    ours = {way: found for way, found in steps.items() if way != FP32}
    gb_per_s = table(ours, lambda _, spent_us: step_bytes() / spent_us / 1e3)
    gop_per_s = table(ours, lambda n, spent_us: step_operations(n) / spent_us / 1e3)
    found = {
        "us": us,
        "step_us": steps,
        "ratio": table(ours, lambda n, spent_us: steps[FP32][n] / spent_us),
        "gb_per_s": gb_per_s,
        "gop_per_s": gop_per_s,
        "read_share": table(gb_per_s, lambda _, rate: rate / read_rate),
        "int8_share": table(gop_per_s, lambda _, rate: rate / int8_rate),
    }
    for way, times in ours.items():
        for n, spent_us in times.items():
            line = (
                f"{torch.get_num_threads()} threads {way:8} {n:4} rows: {spent_us / 1e3:8.2f} ms,"
            )
            line += "".join(f" {key} {found[key][way][n]:.2f}" for key in list(found)[2:])
            print(line, file=sys.stderr)
    return dict(found)


def step(us: dict[str, dict[int, float]], num_rows: int) -> float:
    """Return the microseconds of all linears of a step."""
    counted = min(num_rows, MAX_VOCABULARY_ROWS)
    return sum(
        SHAPES[shape][3] * found[counted if shape == "vocabulary" else num_rows]
        for shape, found in us.items()
    )


def step_bytes() -> float:
    """Return the bytes of all weights as they are stored."""
    return sum(
        count * out_features * in_features // kind.block_size * kind.block_bytes
        for kind, out_features, in_features, count in SHAPES.values()
    )


def step_operations(num_rows: int) -> float:
    """Return the additions and multiplications of a step."""
    return sum(
        2 * count * out_features * in_features
        * (min(num_rows, MAX_VOCABULARY_ROWS) if shape == "vocabulary" else num_rows)
        for shape, (_, out_features, in_features, count) in SHAPES.items()
    )  # fmt: skip


def table(
    values: dict[str, dict[int, float]], function: Callable[[int, float], float]
) -> dict[str, dict[int, float]]:
    """Apply a function of the number of rows and a value to all values."""
    return {way: {n: function(n, value) for n, value in row.items()} for way, row in values.items()}


if __name__ == "__main__":
    main()
