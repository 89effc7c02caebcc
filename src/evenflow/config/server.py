"""The HTTP server: where it listens, who may use it, and what it puts up with."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field, SecretStr

from evenflow.config.area import Area


class ServerConfig(Area):
    """Address, keys and limits of the HTTP server."""

    table: ClassVar[str] = "server"

    host: str = Field(default="127.0.0.1", min_length=1)
    """Address to listen on. Another one than loopback needs keys, or
    --allow-unauthenticated."""

    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one and prints it."""

    served_model_name: str | None = Field(default=None, min_length=1)
    """Name of the model in the API; none means the name it was started with."""

    api_key: SecretStr | None = Field(default=None, min_length=1)
    """One key for everybody; none means that only --keys-file counts. Prefer the environment
    variable: other users of the machine can see flags."""

    admin_api_key: SecretStr | None = Field(default=None, min_length=1)
    """Key of the admin endpoints; without it, or an admin key in --keys-file, they are off."""

    keys_file: Path | None = None
    """File of tenants and hashed API keys, which `evenflow keys new` writes."""

    allow_unauthenticated: bool = False
    """Serve without keys on addresses that other machines can reach."""

    trust_proxy_headers: bool = False
    """Take the tenant from the header x-llm-d-inference-fairness-id; only behind a proxy that
    removes what clients send under that name."""

    max_request_bytes: int = Field(default=4 * 1024 * 1024, ge=1024)
    """Largest request body; uploads to /v1/files may have 64 times as much."""

    max_connections: int = Field(default=4096, ge=1)
    """Most open connections; further ones are answered with 503."""

    body_timeout: float = Field(default=30.0, gt=0)
    """Seconds in which the headers of a request must have arrived, and then its body."""

    request_timeout: float | None = Field(default=None, gt=0)
    """Seconds after which a request that still waits or runs is ended; none means never. The
    header x-request-timeout-ms asks for less."""

    shutdown_timeout: float = Field(default=30.0, ge=0)
    """Seconds that running requests get to finish after SIGTERM; the rest is handed back with an
    error."""

    data_dir: Path | None = None
    """Folder in which uploaded files and batches are kept over restarts; none means one for each
    port in --cache."""

    max_stored_response_bytes: int = Field(default=64 * 1024 * 1024, ge=0)
    """Memory for the answers of /v1/responses that later requests may continue; the oldest make
    room for new ones."""

    enable_log_requests: bool = False
    """Log prompts and parameters of requests at the debug level."""

    record_trace: Path | None = None
    """File (.jsonl) to record the traffic in: one row per request that ended, with its time, tenant
    and lengths, and hashes of its prompt. What is there is kept: the new file gets a number."""

    record_trace_prompts: bool = False
    """Record the token ids of prompts too."""

    otlp_traces_endpoint: str | None = None
    """URL of an OpenTelemetry collector (http://127.0.0.1:4318/v1/traces) that gets a trace of
    each request."""

    tool_call_parser: str = Field(default="auto", min_length=1)
    """How the model writes tool calls: hermes, llama3_json, mistral, or auto to tell from its chat
    template."""
