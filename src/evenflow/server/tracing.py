"""OpenTelemetry: one span per completion, below it one span per interval of its life.

    chat smollm2        |-----------------------------------------------|
      queued            |----|
      prefill                |--------|
      decode                          |------|            |-------------|
      preempted, recompute                   |----|-------|

Needs the extra `otel`, which is imported only when an exporter is opened. The spans are written
once a completion has ended, from what `explain` says, so a running one pays nothing for them.

Attributes are OpenTelemetry's GenAI conventions and vLLM's, and ours under `evenflow.`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from evenflow.core.errors import ConfigError
from evenflow.engine.explain import Explanation
from evenflow.engine.outputs import RequestMetrics

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.util.types import AttributeValue

_NS = 1_000_000_000
_ERRORS = frozenset({"error", "timeout"})


class Tracer:
    """Writes spans.

    Args:
        provider: samples and exports them.
        model: the model's name.
    """

    def __init__(self, provider: TracerProvider, model: str) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._model = model
        self._tracer = provider.get_tracer("evenflow")
        self._propagator = TraceContextTextMapPropagator()

    def on_finished(
        self, explanation: Explanation, metrics: RequestMetrics, traceparent: str | None
    ) -> None:
        """Write the spans of a completion that ended.

        Args:
            explanation: its life; the status is its finish reason.
            metrics: its times, on the monotonic clock.
            traceparent: the caller's span (W3C), which becomes the parent and decides whether
                there is a trace at all.
        """
        from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context

        epoch_ns = time.time_ns() - time.monotonic_ns()
        arrival_ns = epoch_ns + int(metrics.arrival_s * _NS)
        operation = _operation(explanation.request_id)
        span = self._tracer.start_span(
            f"{operation} {self._model}",
            context=self._propagator.extract({"traceparent": traceparent} if traceparent else {}),
            kind=SpanKind.SERVER,
            attributes=self._attributes(explanation, metrics)
            | {"gen_ai.operation.name": operation},
            start_time=arrival_ns,
        )
        if explanation.status in _ERRORS:
            span.set_status(StatusCode.ERROR, explanation.status)
        inside = set_span_in_context(span)
        for interval in explanation.intervals:
            child = self._tracer.start_span(
                interval.kind.value,
                context=inside,
                attributes={"evenflow.cause": interval.cause, "evenflow.detail": interval.detail},
                start_time=arrival_ns + int(interval.start_s * _NS),
            )
            child.end(arrival_ns + int(interval.end_s * _NS))
        span.end(arrival_ns + int(explanation.latency_s * _NS))

    def close(self) -> None:
        """Export what is left."""
        self._provider.shutdown()

    def _attributes(
        self, explanation: Explanation, metrics: RequestMetrics
    ) -> dict[str, AttributeValue]:
        attributes: dict[str, AttributeValue] = {
            "gen_ai.provider.name": "evenflow",
            "gen_ai.request.model": self._model,
            "gen_ai.response.id": explanation.request_id,
            "gen_ai.response.finish_reasons": (explanation.status,),
            "gen_ai.usage.input_tokens": metrics.num_prompt_tokens,
            "gen_ai.usage.output_tokens": metrics.num_output_tokens,
            "gen_ai.latency.e2e": explanation.latency_s,
            "gen_ai.latency.time_in_queue": explanation.queue_time_s,
            "evenflow.tenant": explanation.tenant_id,
            "evenflow.num_cached_tokens": metrics.num_cached_tokens,
            "evenflow.num_preemptions": metrics.num_preemptions,
        }
        if metrics.ttft_s is not None:
            attributes["gen_ai.latency.time_to_first_token"] = metrics.ttft_s
        return attributes


def build_tracer(endpoint: str | None, *, model: str, version: str) -> Tracer | None:
    """Return a tracer that exports by OTLP over HTTP, in batches, from a thread of its own.

    Args:
        endpoint: of the collector, for example http://127.0.0.1:4318/v1/traces; None for no tracer.
        model: the model's name.
        version: evenflow's.

    Raises:
        ConfigError: the extra `otel` is not installed.
    """
    if endpoint is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError(
            "--otlp-traces-endpoint needs OpenTelemetry",
            why=str(error),
            fix="Install it with `pip install 'evenflow[otel]'`",
        ) from error
    resource = Resource.create({"service.name": "evenflow", "service.version": version})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
    return Tracer(provider, model)


def _operation(request_id: str) -> str:
    """Return the GenAI conventions' name of the operation; request ids begin with OpenAI's."""
    prefix = request_id.partition("-")[0]
    return {"cmpl": "text_completion", "embd": "embeddings"}.get(prefix, "chat")
