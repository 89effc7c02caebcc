"""Requests of every kind, made from the OpenAPI document, against a server with a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from support.served_model import ADMIN_KEY, get, get_json, post, served

pytestmark = pytest.mark.slow

MODEL = "tiny"
NUM_EXAMPLES = 20
TIMEOUT_S = 10
ADMIN = {"authorization": f"Bearer {ADMIN_KEY}"}
# Streams without end, and what makes a healthy server answer 503: other tests use these.
LEFT_OUT = ("/ui/events", "/admin/trace", "/admin/drain", "/admin/pause")
GENERATING = {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("served")
    (folder / "template.jinja").write_text(
        "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}",
        encoding="utf-8",
    )
    template = ("--chat-template", str(folder / "template.jinja"))
    limits = ("--max-model-len", "256", "--num-blocks-override", "64", "--max-num-seqs", "16")
    names = ("--served-model-name", MODEL, "--admin-api-key", ADMIN_KEY)
    with served(folder, *names, *template, *limits) as running:
        yield running


def with_right_models(schema: Any) -> Any:
    """Name the served model wherever a model is asked for; else nearly all would be a 404."""
    if isinstance(schema, list):
        return [with_right_models(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: {"const": MODEL} if name == "model" else with_right_models(part)
        for name, part in schema.items()
    }


def answered(address: str) -> set[tuple[str, str]]:
    """Return the routes that were asked, each with the statuses it answered."""
    families = text_string_to_metric_families(get(address, "/metrics").decode())
    samples = [sample for family in families for sample in family.samples]
    name = "evenflow:http_requests_total"
    return {
        (sample.labels["path"], sample.labels["status"])
        for sample in samples
        if sample.name == name
    }


def test_no_request_makes_the_server_fail_or_hang(address: str, tmp_path: Path) -> None:
    document = tmp_path / "openapi.json"
    described = with_right_models(get_json(address, "/openapi.json"))
    document.write_text(json.dumps(described), encoding="utf-8")
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", str(document)]
    options = {
        "--url": f"http://{address}",
        "--checks": "not_a_server_error",
        "--phases": "coverage,fuzzing",
        "--max-examples": str(NUM_EXAMPLES),
        "--request-timeout": str(TIMEOUT_S),
    }
    # Generations are cut short; some of the requests ask for very long ones.
    headers = ADMIN | {"x-request-timeout-ms": "50"}
    run = subprocess.run(
        [
            *command,
            *(word for option in options.items() for word in option),
            *(word for path in LEFT_OUT for word in ("--exclude-path", path)),
            *(word for pair in headers.items() for word in ("--header", ": ".join(pair))),
            *("--generation-deterministic", "--continue-on-failure", "--no-shrink"),
            *("--warnings", "off"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    asked = answered(address)
    generated = {path for path, status in asked if status in ("200", "408")}  # 408: cut short
    assert generated >= GENERATING
    assert post(address, "/admin/abort", {"all": True}, **ADMIN) == 200
    assert post(address, "/admin/check_integrity", {}, **ADMIN) == 200
