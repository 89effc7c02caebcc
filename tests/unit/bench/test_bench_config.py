from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evenflow.bench.config import BenchConfig
from evenflow.bench.workload import make_workload
from evenflow.core.errors import ConfigError
from evenflow.workloads.request import WorkloadRequest
from evenflow.workloads.text import Vocabulary


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_prompts": 0}, "--num-prompts must be positive"),
        ({"request_rate": -1.0}, "--request-rate must be positive"),
        ({"request_rate": math.nan}, "--request-rate must be positive"),
        ({"max_concurrency": 0}, "--max-concurrency must be positive"),
        ({"random_output_len": 0}, "--random-output-len must be positive"),
        ({"random_prefix_len": -1}, "--random-prefix-len must not be negative"),
        ({"turn_think_time_s": -1.0}, "--turn-think-time must not be negative"),
        ({"random_range_ratio": 1.0}, "--random-range-ratio"),
        ({"metric_percentiles": (101.0,)}, "--metric-percentiles"),
        ({"goodput": {"itl": 5.0}}, "--goodput knows no metric 'itl'"),
        ({"dataset_name": "trace"}, "--dataset-name trace needs a file"),
        ({"tenants": {"a": 0.0}}, "--tenants must be positive"),
        ({"tenant_keys": {"b": "key"}, "tenants": {"a": 1.0}}, "--tenant-keys names b"),
        ({"ramp_up_start_rps": 1.0}, "--ramp-up-strategy linear or exponential"),
        ({"ramp_up_strategy": "linear", "ramp_up_start_rps": 1.0}, "--ramp-up-end-rps"),
        (
            {
                "ramp_up_strategy": "linear",
                "ramp_up_start_rps": 1.0,
                "ramp_up_end_rps": 2.0,
                "request_rate": 3.0,
            },
            "--request-rate contradicts",
        ),
    ],
)
def test_config_refuses_what_makes_no_sense(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BenchConfig(**values)


@pytest.mark.parametrize(
    "base_url", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"]
)
def test_config_takes_base_urls_with_and_without_version(base_url: str) -> None:
    assert BenchConfig(base_url=base_url).url == "http://h:1/v1/completions"
    assert BenchConfig(base_url=base_url, endpoint="/x").url == "http://h:1/x"


def test_config_keeps_secrets_out_of_results() -> None:
    config = BenchConfig(
        api_key="hidden-1",
        header={"x-token": "hidden-2"},
        tenants={"a": 1.0},
        tenant_keys={"a": "hidden-3"},
    )
    settings = json.dumps(config.workload_settings())
    assert "random_input_len" in settings
    assert "hidden" not in settings


def workload(**values: Any) -> list[WorkloadRequest]:
    config = BenchConfig(**{"num_prompts": 20, "random_input_len": 5, **values})
    return make_workload(config, lambda text: len(text.split()), Vocabulary())[0]


def trace(path: Path) -> Path:
    lines = ["arrival_s,prompt_tokens,output_tokens"] + [f"{i},{i + 1},3" for i in range(5)]
    path.write_text("\n".join(lines))
    return path


def test_workload_is_the_same_when_made_again() -> None:
    values = {"request_rate": 5.0, "tenants": {"a": 1.0, "b": 1.0}, "random_range_ratio": 0.5}
    assert workload(**values) == workload(**values)
    assert workload(**values) != workload(**values, seed=1)


def test_workload_keeps_its_prompts_when_the_rate_changes() -> None:
    slow, fast = (workload(request_rate=rate) for rate in (1.0, 9.0))
    assert [r.prompt for r in slow] == [r.prompt for r in fast]
    assert slow[-1].arrival_s == pytest.approx(20.0)
    assert fast[-1].arrival_s == pytest.approx(20 / 9)


def test_workload_draws_the_arrival_of_sessions_not_of_their_turns() -> None:
    requests = workload(request_rate=1.0, num_turns=4)
    starts = [r.arrival_s for r in requests if not r.continues]
    assert len(starts) == 5
    assert starts[-1] == pytest.approx(5.0)
    assert [r.arrival_s for r in requests] == [start for start in starts for _ in range(4)]


def test_workload_ramps_up() -> None:
    requests = workload(
        num_prompts=400, ramp_up_strategy="linear", ramp_up_start_rps=1.0, ramp_up_end_rps=50.0
    )
    gaps = np.diff([r.arrival_s for r in requests])
    assert gaps[:50].mean() > 4 * gaps[-50:].mean()


@pytest.mark.parametrize(
    ("values", "last_arrival_s"),
    [({}, 4.0), ({"request_rate": 10.0}, 0.5), ({"self_timed": False}, 0.0)],
)
def test_workload_replays_the_arrivals_of_a_trace(
    tmp_path: Path, values: dict[str, Any], last_arrival_s: float
) -> None:
    path = trace(tmp_path / "trace.csv")
    requests = workload(dataset_name="burstgpt", dataset_path=path, **values)
    assert [r.num_prompt_tokens for r in requests] == [1, 2, 3, 4, 5]
    assert requests[-1].arrival_s == pytest.approx(last_arrival_s)


def test_workload_cannot_be_self_timed_without_times() -> None:
    with pytest.raises(ConfigError, match="--self-timed needs arrival times"):
        workload(self_timed=True)


def test_workload_warms_up_with_other_prompts_than_those_measured() -> None:
    config = BenchConfig(num_prompts=3, num_warmups=2, random_input_len=9)
    load, warmups = make_workload(config, len, Vocabulary())
    assert (len(load), len(warmups)) == (3, 2)
    assert not {r.prompt for r in load} & {r.prompt for r in warmups}


def test_config_records_the_settings_of_its_own_data_set_only() -> None:
    settings = BenchConfig(dataset_name="sharegpt").workload_settings()
    assert "sharegpt_output_len" in settings
    assert not [name for name in settings if name.startswith(("random_", "prefix_", "custom_"))]


@pytest.mark.parametrize(
    ("backend", "line", "fix"),
    [
        ("openai", '{"messages": [{"role": "user", "content": "a"}]}', "--backend openai-chat"),
        ("openai-chat", '{"prompt": [1, 2]}', "--backend openai"),
    ],
)
def test_workload_refuses_prompts_that_the_endpoint_does_not_take(
    tmp_path: Path, backend: str, line: str, fix: str
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(line)
    with pytest.raises(ConfigError) as raised:
        workload(backend=backend, dataset_name="custom", dataset_path=path)
    assert raised.value.fix == f"Use {fix}"
