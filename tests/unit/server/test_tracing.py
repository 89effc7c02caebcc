"""Spans of a completion, by OpenTelemetry's in-memory exporter."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from support.metrics_traffic import ended_completion

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from evenflow.core.errors import ConfigError
from evenflow.server.tracing import Tracer, build_tracer

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"


def spans_of(traceparent: str | None = None, status: str = "stop") -> list[ReadableSpan]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = Tracer(provider, "smollm2")
    explanation, metrics = ended_completion(time.monotonic() - 2.0, status=status)
    tracer.on_finished(explanation, metrics, traceparent)
    spans = list(exporter.get_finished_spans())
    tracer.close()
    return spans


def test_tracer_writes_one_span_with_the_usual_attributes_when_a_completion_ends() -> None:
    span = spans_of()[-1]
    assert span.name == "chat smollm2"
    assert span.parent is None
    assert span.end_time is not None
    assert span.start_time is not None
    assert span.end_time - span.start_time == pytest.approx(2e9, abs=1e3)
    assert abs(span.end_time - time.time_ns()) < 60e9
    assert dict(span.attributes or {}) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "evenflow",
        "gen_ai.request.model": "smollm2",
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 64,
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.latency.e2e": pytest.approx(2.0),
        "gen_ai.latency.time_in_queue": pytest.approx(0.5),
        "gen_ai.latency.time_to_first_token": pytest.approx(0.75),
        "evenflow.tenant": "blue",
        "evenflow.num_cached_tokens": 16,
        "evenflow.num_preemptions": 1,
    }


def test_tracer_writes_a_child_per_interval_when_a_completion_ends() -> None:
    *children, span = spans_of()
    assert [child.name for child in children] == [
        *("queued", "prefill", "decode", "preempted", "swap_in", "recompute", "decode")
    ]
    assert all(child.parent == span.get_span_context() for child in children)
    starts = [child.start_time for child in children]
    ends = [child.end_time for child in children]
    assert starts[0] == span.start_time
    assert starts[1:] == pytest.approx(ends[:-1], abs=1e3)


def test_tracer_continues_the_callers_trace_when_a_traceparent_came() -> None:
    span = spans_of(f"00-{TRACE_ID}-{PARENT_ID}-01")[-1]
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == PARENT_ID
    assert f"{span.context.trace_id:032x}" == TRACE_ID


def test_tracer_writes_nothing_when_the_caller_does_not_sample() -> None:
    assert spans_of(f"00-{TRACE_ID}-{PARENT_ID}-00") == []


def test_tracer_starts_a_trace_of_its_own_when_the_traceparent_is_malformed() -> None:
    assert spans_of("00-zzz-01")[-1].parent is None


@pytest.mark.parametrize("status", ["error", "timeout"])
def test_tracer_marks_the_span_when_the_completion_failed(status: str) -> None:
    assert spans_of(status=status)[-1].status.status_code is StatusCode.ERROR


def test_tracer_is_none_when_no_endpoint_is_given() -> None:
    assert build_tracer(None, model="m", version="1") is None


def test_built_tracer_sends_its_spans_to_the_collector_when_closed() -> None:
    received: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((self.path, body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    tracer = build_tracer(
        f"http://127.0.0.1:{server.server_port}/v1/traces", model="smollm2", version="1.0"
    )
    assert tracer is not None
    tracer.on_finished(*ended_completion(time.monotonic() - 2.0), None)
    tracer.close()
    server.shutdown()
    server.server_close()
    ((path, body),) = received
    assert path == "/v1/traces"
    assert all(word in body for word in (b"chat smollm2", b"recompute", b"service.version"))


def test_tracer_says_what_to_install_when_the_extra_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace.export", None)
    with pytest.raises(ConfigError, match=r"evenflow\[otel\]"):
        build_tracer("http://127.0.0.1:9/v1/traces", model="m", version="1")


def test_tracing_imports_no_opentelemetry_when_it_is_not_used() -> None:
    code = "import sys, evenflow.server.tracing; sys.exit('opentelemetry' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
