"""Every metric by name: what `/metrics` exports. `docs/metrics.md` explains each of them.

Names are vLLM's wherever vLLM has the metric. Labels are few and bounded: tenants are folded into
`other` beyond a bound before they get here, paths are those of routes, the model is not a label.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping

from evenflow.server.instruments import Counter, Gauge, Histogram, Instrument, decades

PREFIX = "evenflow:"

_STEP_BOUNDS = decades(-5, 0)  # 10 us to 1 s
_TOKEN_BOUNDS = tuple(float(2**exponent) for exponent in range(15))


class Catalogue:
    """The instruments of one server, by what they are about.

    Args:
        version: evenflow's.
        config: the settings to show.
    """

    def __init__(self, version: str, config: Mapping[str, str]) -> None:
        self.about = AboutInstruments(version, config)
        self.requests = RequestInstruments()
        self.tokens = TokenInstruments()
        self.latency = LatencyInstruments()
        self.tenants = TenantInstruments()
        self.memory = MemoryInstruments()
        self.switching = SwitchInstruments()
        self.steps = StepInstruments()
        self.http = HttpInstruments()

    def __iter__(self) -> Iterator[Instrument]:
        """Yield every instrument."""
        for group in vars(self).values():
            yield from vars(group).values()


class AboutInstruments:
    """What runs, and how it was started: facts as labels of a 1."""

    def __init__(self, version: str, config: Mapping[str, str]) -> None:
        self.build = _gauge("build_info", "What runs.", "version", "python")
        self.build.set(1, version, platform.python_version())
        self.config = _gauge("config_info", "Settings in force.", *config)
        self.config.set(1, *config.values())


class RequestInstruments:
    """How many requests are where, and how they ended."""

    def __init__(self) -> None:
        self.running = _gauge("num_requests_running", "Requests that hold KV memory.")
        self.waiting = _gauge(
            "num_requests_waiting", "Waiting requests by what they wait for.", "reason", "tenant"
        )
        self.submitted = _counter("tenant_requests_total", "Accepted requests.", "tenant")
        self.finished = _counter("request_success_total", "Ended completions.", "finished_reason")
        self.rejected = _counter(
            "admission_rejections_total", "Requests that were not accepted.", "reason", "tenant"
        )


class TokenInstruments:
    """How many tokens went in, came out, and were spared."""

    def __init__(self) -> None:
        self.prompt = _counter(
            "prompt_tokens_total", "Prompt tokens of accepted requests.", "tenant"
        )
        self.cached = _counter(
            "prompt_tokens_cached_total", "Prompt tokens whose KV was there already.", "tenant"
        )
        self.generated = _counter("generation_tokens_total", "Generated tokens.", "tenant")


class LatencyInstruments:
    """How long completions took."""

    def __init__(self) -> None:
        self.ttft = _latency(
            "time_to_first_token_seconds", "From arrival to the first token.", "tenant"
        )
        self.itl = _latency(
            "inter_token_latency_seconds", "Between two tokens of a completion.", "tenant"
        )
        self.tpot = _latency(
            "request_time_per_output_token_seconds", "Mean time per token after the first."
        )
        self.e2e = _latency("e2e_request_latency_seconds", "From arrival to the end.", "tenant")
        self.queue = _latency(
            "request_queue_time_seconds", "From arrival to the first step.", "tenant"
        )
        self.prefill = _latency(
            "request_prefill_time_seconds", "From the first step to the first token."
        )
        self.decode = _latency("request_decode_time_seconds", "From the first token to the end.")
        self.inference = _latency(
            "request_inference_time_seconds", "From the first step to the end."
        )
        self.stage = _latency("request_stage_seconds", "Time spent in each stage.", "stage")


class TenantInstruments:
    """What tenants received, and how evenly."""

    def __init__(self) -> None:
        self.running = _gauge("tenant_requests_running", "Running requests.", "tenant")
        self.service = _counter(
            "tenant_service_tokens_total", "Service received, in weighted tokens.", "tenant"
        )
        self.service_gap = _gauge(
            "tenant_service_gap_tokens",
            "Most minus least service per weight of 30 s, over tenants that waited throughout.",
        )
        self.jain_index = _gauge(
            "jain_fairness_index",
            "Jain's index of service per weight of 30 s, over tenants that waited throughout.",
        )
        self.slo_requests = _counter(
            "slo_requests_total", "Completions with an objective.", "tenant", "slo", "attained"
        )
        self.slo_attainment = _gauge(
            "slo_attainment_ratio", "Share that met its objective in 5 min.", "tenant", "slo"
        )


class MemoryInstruments:
    """What the KV blocks hold, and what was lost for want of them."""

    def __init__(self) -> None:
        self.usage = _gauge("kv_cache_usage_ratio", "Share of KV blocks held by requests (0-1).")
        self.usage_alias = _gauge("kv_cache_usage_perc", "The same by vLLM's name (0-1).")
        self.blocks = _gauge("kv_blocks", "KV blocks; the states add up to all of them.", "state")
        self.cached = _gauge("kv_cached_blocks", "KV blocks that the prefix cache can find.")
        self.pinned = _gauge("kv_pinned_blocks", "KV blocks that sessions have pinned.")
        self.mean_extent = _gauge("kv_mean_extent_blocks", "KV blocks per contiguous run.")
        self.queries = _counter(
            "prefix_cache_queries_total", "Tokens looked up in the prefix cache."
        )
        self.hits = _counter("prefix_cache_hits_total", "Tokens found in the prefix cache.")
        self.preemptions = _counter(
            "num_preemptions_total", "Times a request lost its memory.", "mode", "reason", "tenant"
        )
        self.preemption_cost = _latency(
            "preemption_cost_seconds", "Time to get back what one preemption took.", "mode"
        )


class SwitchInstruments:
    """Requests off the device and what brought them there and back."""

    def __init__(self) -> None:
        self.swapped = _gauge(
            "num_requests_swapped", "Requests that lost their place and wait to return."
        )
        self.arriving = _gauge("num_requests_arriving", "Requests whose KV is being loaded.")
        self.host = _gauge("kv_host_blocks", "KV blocks of the host, by what they hold.", "state")
        self.host_usage = _gauge(
            "cpu_cache_usage_perc", "Share of the host's KV blocks that hold copies (0-1)."
        )
        self.disk = _gauge("kv_disk_blocks", "KV blocks on disk, by what they hold.", "state")
        self.bytes = _counter("kv_swap_bytes_total", "KV moved between tiers.", "direction")
        self.copies = _counter(
            "kv_swap_copies_total", "Runs of KV blocks moved between tiers.", "direction"
        )
        self.seconds = _counter(
            "kv_swap_seconds_total", "Time that moving KV took by itself.", "direction"
        )
        self.failures = _counter("kv_swap_failures_total", "Transfers that failed.", "direction")
        self.stalls = _counter(
            "switch_stall_seconds_total", "Time that steps waited for moving KV.", "cause"
        )
        self.conflicts = _counter(
            "switch_conflicts_total", "Transfers whose blocks a step was about to write into."
        )


class StepInstruments:
    """What the engine does with its time."""

    def __init__(self) -> None:
        self.paused = _gauge("engine_paused", "1 while the engine takes no steps, else 0.")
        self.steps = _counter("engine_steps_total", "Steps that computed something.")
        self.time = _counter("step_seconds_total", "Time spent in each part of the steps.", "stage")
        self.tokens = _histogram("iteration_tokens_total", "Tokens per step.", _TOKEN_BOUNDS)
        self.planning = _histogram("scheduler_step_seconds", "Time to plan one step.", _STEP_BOUNDS)
        self.handover = _histogram(
            "step_handover_seconds", "Between two steps while work is there.", _STEP_BOUNDS
        )


class HttpInstruments:
    """How the server process itself does."""

    def __init__(self) -> None:
        self.requests = _counter("http_requests_total", "Answered HTTP requests.", "path", "status")
        self.loop_lag = _histogram(
            "http_event_loop_lag_seconds", "How late the event loop ran a timer.", _STEP_BOUNDS
        )


def _counter(name: str, meaning: str, *labels: str) -> Counter:
    return Counter(PREFIX + name, meaning, labels)


def _gauge(name: str, meaning: str, *labels: str) -> Gauge:
    return Gauge(PREFIX + name, meaning, labels)


def _histogram(name: str, meaning: str, bounds: tuple[float, ...]) -> Histogram:
    return Histogram(PREFIX + name, meaning, bounds)


def _latency(name: str, meaning: str, *labels: str) -> Histogram:
    """Return a histogram from 1 ms to 1000 s, fine enough to read percentiles from."""
    return Histogram(PREFIX + name, meaning, decades(-3, 3), labels, subdivide=10)
