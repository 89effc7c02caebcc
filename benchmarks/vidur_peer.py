"""Vidur's side of `simulator_speed.py`, run by the interpreter of Vidur's own environment.

Reads a JSON object from stdin: `trace`, `cache` and `output` are paths, the rest are Vidur's own
settings, named as its classes name them. Its profiling data are found in its cache; nothing is
downloaded. Nothing is recorded or drawn: that is its fastest.

The last line on stdout is one JSON object:
    import_s: Vidur's imports.
    setup_s: its predictor (trained, or loaded from the cache), its cluster, the reading of the trace.
    run_s: its event loop alone.
    rss_mb: most memory in use at any time.
    virtual_s: when the last request ended.
    mean_ttft_s, mean_e2e_s: over the requests, for comparison of what was simulated.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

BEGAN_S = time.perf_counter()

from vidur.config import (  # noqa: E402  the time of these imports is measured
    CacheConfig,
    ClusterConfig,
    MetricsConfig,
    RandomForrestExecutionTimePredictorConfig,
    ReplicaConfig,
    SarathiSchedulerConfig,
    SimulationConfig,
    TraceRequestGeneratorConfig,
)
from vidur.simulator import Simulator  # noqa: E402

IMPORT_S = time.perf_counter() - BEGAN_S


def configuration(given: dict[str, Any]) -> SimulationConfig:
    """Return Vidur's settings: one device, chunked prefills, no output."""
    return SimulationConfig(
        log_level="error",
        cluster_config=ClusterConfig(
            replica_config=ReplicaConfig(
                num_pipeline_stages=1, tensor_parallel_size=1, **given["replica"]
            ),
            cache_config=CacheConfig(**given["cache"]),
            replica_scheduler_config=SarathiSchedulerConfig(**given["scheduler"]),
        ),
        request_generator_config=TraceRequestGeneratorConfig(
            prefill_scale_factor=1.0, time_scale_factor=1.0, **given["trace"]
        ),
        execution_time_predictor_config=RandomForrestExecutionTimePredictorConfig(
            **given["predictor"]
        ),
        metrics_config=MetricsConfig(
            write_metrics=False,
            enable_chrome_trace=False,
            store_plots=False,
            store_request_metrics=False,
            store_batch_metrics=False,
            store_utilization_metrics=False,
            output_dir=given["output"],
        ),
    )


def peak_rss_mb() -> float:
    """Return the most memory this process ever had, in MB."""
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) * 1024 / 1e6


def main() -> None:
    """Simulate and print."""
    given = json.load(sys.stdin)
    began_s = time.perf_counter()
    simulator = Simulator(configuration(given))
    setup_s = time.perf_counter() - began_s
    requests = [event._request for _, event in simulator._event_queue]
    began_s = time.perf_counter()
    simulator.run()
    run_s = time.perf_counter() - began_s
    num = len(requests)
    result = {
        "import_s": IMPORT_S,
        "setup_s": setup_s,
        "run_s": run_s,
        "rss_mb": peak_rss_mb(),
        "num_requests": num,
        "virtual_s": max(request.completed_at for request in requests),
        "mean_ttft_s": sum(r.prefill_completed_at - r.arrived_at for r in requests) / num,
        "mean_e2e_s": sum(request.e2e_time for request in requests) / num,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
