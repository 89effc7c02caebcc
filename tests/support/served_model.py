"""A real server process, by default with a tiny model of random weights."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from support.small_tokenizers import byte_level_backend

COMMAND = str(Path(sys.executable).with_name("evenflow"))
DEADLINE_S = 120.0
ADMIN_KEY = "adm-1"
MAX_MODEL_LEN = 2048
"""Of the server with the real model that tests share."""


def write_model(folder: Path) -> Path:
    """Write the configuration and the tokeniser of a two-layer model, without weights."""
    backend = byte_level_backend()
    backend.save(str(folder / "tokenizer.json"))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": backend.get_vocab_size(),
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "eos_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@contextmanager
def served(folder: Path, *flags: str, model: str | None = None) -> Iterator[str]:
    """Serve a model, the tiny one if none is named, until the block is left.

    Yields the host and port. `folder` takes what the server writes.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    what = [model] if model else [str(write_model(folder)), "--load-format", "dummy"]
    own = ["--port", str(port), "--data-dir", str(folder / "data")]
    process = subprocess.Popen(
        [COMMAND, "serve", *what, *own, *flags],
        stdout=subprocess.DEVNULL,
        stderr=(folder / "log").open("w"),
    )
    address = f"127.0.0.1:{port}"
    try:
        deadline_s = time.monotonic() + DEADLINE_S
        while not _is_ready(address):
            assert process.poll() is None, (folder / "log").read_text(encoding="utf-8")
            assert time.monotonic() < deadline_s, "the server is not ready in time"
            time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=DEADLINE_S)


def post(address: str, path: str, body: dict[str, Any], **headers: str) -> int:
    """Send a request and return the status of its answer."""
    request = urllib.request.Request(
        f"http://{address}{path}",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", **headers},
    )
    try:
        with urllib.request.urlopen(request, timeout=DEADLINE_S) as response:
            response.read()
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def get(address: str, path: str, **headers: str) -> bytes:
    """Return the body of a page."""
    request = urllib.request.Request(f"http://{address}{path}", headers=headers)
    with urllib.request.urlopen(request, timeout=DEADLINE_S) as response:
        return bytes(response.read())


def get_json(address: str, path: str, **headers: str) -> Any:
    """Return the decoded body of a page."""
    return json.loads(get(address, path, **headers))


def metric(address: str, name: str) -> float:
    """Return the sum of a metric over its labels."""
    families = text_string_to_metric_families(get(address, "/metrics").decode())
    samples = [sample for family in families for sample in family.samples]
    return sum(sample.value for sample in samples if sample.name == name)


def _is_ready(address: str) -> bool:
    try:
        get(address, "/ready")
    except OSError:
        return False
    return True
