"""One run of Vidur, by the interpreter of its own environment. See `vidur_peer.py`.

Reads a JSON object from stdin: the fields of Vidur's own configurations, by configuration. Its
tables are found in its cache; nothing is downloaded, plotted or traced.

The last line on stdout is one JSON object:
    import_s: importing it.
    setup_s: its predictor, trained or loaded, and reading the trace.
    run_s: its event loop alone.
    rss_mb: most memory in use at any time.
    virtual_s: when the last request ended.
    mean_ttft_s, mean_e2e_s: until a request's first token and its last.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from statistics import fmean
from typing import Any


def simulator_of(given: dict[str, Any]) -> Any:
    """Build the simulator: one device, chunked prefills before a budget of tokens."""
    from vidur import config
    from vidur.simulator import Simulator

    cluster = config.ClusterConfig(
        replica_config=config.ReplicaConfig(**given["replica"]),
        cache_config=config.CacheConfig(**given["cache"]),
        replica_scheduler_config=config.SarathiSchedulerConfig(**given["scheduler"]),
    )
    return Simulator(
        config.SimulationConfig(
            cluster_config=cluster,
            request_generator_config=config.TraceRequestGeneratorConfig(**given["trace"]),
            execution_time_predictor_config=config.RandomForrestExecutionTimePredictorConfig(
                **given["predictor"]
            ),
            metrics_config=config.MetricsConfig(**given["metrics"]),
        )
    )


def peak_rss_mb() -> float:
    """Return the most memory that this process ever had, in MB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) * 1024 / 1e6


def main() -> None:
    """Simulate and print."""
    given = json.load(sys.stdin)
    began_s = time.perf_counter()
    import vidur.simulator  # noqa: F401  for the time it takes

    imported_s = time.perf_counter()
    simulator = simulator_of(given)
    requests = [event._request for _, event in simulator._event_queue]  # noqa: SLF001  no other way
    ready_s = time.perf_counter()
    simulator.run()
    ended_s = time.perf_counter()
    result = {
        "import_s": imported_s - began_s,
        "setup_s": ready_s - imported_s,
        "run_s": ended_s - ready_s,
        "rss_mb": peak_rss_mb(),
        "virtual_s": max(request.completed_at for request in requests),
        "mean_ttft_s": fmean(r.prefill_completed_at - r.arrived_at for r in requests),
        "mean_e2e_s": fmean(request.e2e_time for request in requests),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
