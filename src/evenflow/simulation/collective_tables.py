"""All-reduces as they were measured, between neighbouring devices of one host."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from evenflow.core.errors import ConfigError
from evenflow.execution.costs.interpolation import Curve, Range
from evenflow.simulation.profile_tables import read_table

_TABLE = "collectives"
_ELEMENT_BYTES = {"half": 2, "bfloat16": 2}


class MeasuredCollectives:
    """The all-reduces of one kind of device.

    vLLM's own kernel inside a CUDA graph and NCCL were both measured. Each size takes the faster of
    the two, as the server chooses between them by size.

    Args:
        directory: the folder of tables.
        gpu: the device, as the tables call it.

    Raises:
        ConfigError: none were measured.
    """

    def __init__(self, directory: Path, gpu: str) -> None:
        points: defaultdict[int, dict[float, float]] = defaultdict(dict)
        columns = ("num_gpus", "source", "dtype", "elements", "latency_ms")
        where = {"gpu": gpu, "op": "all_reduce"}
        for num_gpus, source, dtype, elements, ms in read_table(directory, _TABLE, columns, where):
            if dtype in _ELEMENT_BYTES and not source.endswith("eager"):
                fastest = points[int(num_gpus)]
                num_bytes = int(elements) * _ELEMENT_BYTES[dtype]
                fastest[num_bytes] = min(float(ms) * 1e-3, fastest.get(num_bytes, float("inf")))
        if not points:
            raise ConfigError(
                f"no all-reduce of {gpu} was measured",
                why=f"the table {_TABLE!r} in {directory} has none",
                fix="Use --tp 1, or use --costs roofline",
            )
        self._gpu = gpu
        self._curves = {
            count: Curve(of.items(), Range(f"all-reduce over {count} x {gpu}", "bytes"))
            for count, of in points.items()
        }

    @property
    def description(self) -> str:
        """What it is and where its figures come from."""
        return f"all-reduce on {self._gpu} as measured, vLLM's or NCCL's (aiconfigurator)"

    def all_reduce_s(self, num_bytes: int, num_gpus: int) -> float:
        """Return the seconds to sum a tensor of `num_bytes` over the devices.

        Raises:
            ConfigError: it was not measured over so many.
        """
        if num_gpus == 1:
            return 0.0
        if num_gpus not in self._curves:
            raise ConfigError(
                f"no all-reduce over {num_gpus} x {self._gpu} was measured",
                why=f"there are those over {', '.join(map(str, sorted(self._curves)))}",
                fix="Choose one of these for --tp, or use --costs roofline",
            )
        return self._curves[num_gpus](num_bytes)
