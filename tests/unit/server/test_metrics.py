"""What `/metrics` says, read back by prometheus_client's parser."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from evenflow.engine.process.messages import (
    LinkUse,
    Preemptions,
    StepSample,
    Switching,
    TierUse,
)
from evenflow.server.catalogue import PREFIX, Catalogue
from evenflow.server.metrics import ServerMetrics
from support.metrics_traffic import Traffic, ended_completion, snapshot

NUM_HEADER_LINES = 2
GLOSSARY = Path(__file__).parents[3] / "docs" / "metrics.md"


def new_metrics(**changes: object) -> ServerMetrics:
    settings = {"started_s": 100.0, "version": "1.0", "config": {"model": "m"}, **changes}
    return ServerMetrics(**settings)  # type: ignore[arg-type]  # the defaults above fit


def exported(metrics: ServerMetrics) -> dict[str, float]:
    """Return every sample by name and labels, as `name{label=value,...}`."""
    found = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}".removeprefix(PREFIX)] = sample.value
    return found


def test_metrics_count_requests_and_tokens_when_told() -> None:
    metrics = new_metrics()
    metrics.on_submitted("blue", 40)
    metrics.on_first_token("blue", 0.2)
    metrics.on_token("blue", 0.03)
    metrics.on_token("blue", 0.03)
    metrics.on_rejected("green", "queue_full")
    values = exported(metrics)
    assert values["tenant_requests_total{tenant=blue}"] == 1
    assert values["prompt_tokens_total{tenant=blue}"] == 40
    assert values["generation_tokens_total{tenant=blue}"] == 3
    assert values["time_to_first_token_seconds_sum{tenant=blue}"] == 0.2
    assert values["inter_token_latency_seconds_count{tenant=blue}"] == 2
    assert values["inter_token_latency_seconds_bucket{le=0.025,tenant=blue}"] == 0
    assert values["inter_token_latency_seconds_bucket{le=0.04,tenant=blue}"] == 2
    assert values["admission_rejections_total{reason=queue_full,tenant=green}"] == 1


def test_metrics_split_a_latency_into_its_parts_when_a_completion_ends() -> None:
    metrics = new_metrics()
    explanation, times = ended_completion(arrival_s=100.0)
    metrics.on_finished(explanation, times, {"ttft": True, "tpot": False})
    values = exported(metrics)
    assert values["e2e_request_latency_seconds_sum{tenant=blue}"] == 2.0
    assert values["request_queue_time_seconds_sum{tenant=blue}"] == 0.5
    assert values["request_prefill_time_seconds_sum{}"] == 0.25
    assert values["request_decode_time_seconds_sum{}"] == 1.25
    assert values["request_inference_time_seconds_sum{}"] == 1.5
    assert values["request_time_per_output_token_seconds_sum{}"] == 1.25 / 4
    assert values["preemption_cost_seconds_sum{mode=recompute}"] == 0.25
    assert values["preemption_cost_seconds_sum{mode=swap}"] == 0.125
    assert values["request_success_total{finished_reason=stop}"] == 1
    assert values["prompt_tokens_cached_total{tenant=blue}"] == 16
    assert values["slo_requests_total{attained=true,slo=ttft,tenant=blue}"] == 1
    assert values["slo_requests_total{attained=false,slo=tpot,tenant=blue}"] == 1
    stages = {
        name: value
        for name, value in values.items()
        if name.startswith("request_stage_seconds_sum")
    }
    assert set(stages) == {
        f"request_stage_seconds_sum{{stage={stage}}}"
        for stage in ("queued", "prefill", "decode", "preempted", "swap_in", "recompute")
    }
    assert sum(stages.values()) == pytest.approx(2.0)


@pytest.mark.parametrize("status", ["abort", "error", "timeout"])
def test_metrics_keep_only_the_outcome_when_a_completion_was_cut_short(status: str) -> None:
    metrics = new_metrics()
    explanation, times = ended_completion(arrival_s=100.0, status=status)
    metrics.on_finished(explanation, times, {})
    values = exported(metrics)
    assert values[f"request_success_total{{finished_reason={status}}}"] == 1
    assert "e2e_request_latency_seconds_count{tenant=blue}" not in values


def test_metrics_mirror_the_engine_when_a_snapshot_comes() -> None:
    metrics = new_metrics()
    metrics.on_snapshot(
        snapshot(
            101.0,
            service={"blue": 50.0, "green": 70.0},
            is_paused=True,
            preemptions=[Preemptions("recompute", "memory", "blue", 3)],
            steps=[StepSample(0.0002, 0.03, 0.0001, 0.0001, 48, 12, 0.0004)],
            num_steps=9,
            step_s={"schedule": 0.5, "execute": 1.5},
        )
    )
    values = exported(metrics)
    assert values["num_requests_running{}"] == 4
    assert values["num_requests_waiting{reason=memory,tenant=green}"] == 1
    assert values["tenant_service_tokens_total{tenant=green}"] == 70
    assert values["num_preemptions_total{mode=recompute,reason=memory,tenant=blue}"] == 3
    assert values["engine_paused{}"] == 1
    assert values["engine_steps_total{}"] == 9
    assert values["step_seconds_total{stage=execute}"] == 1.5
    assert values["iteration_tokens_total_sum{}"] == 48
    assert values["scheduler_step_seconds_sum{}"] == 0.0002
    assert values["kv_blocks{state=free}"] == 100
    assert values["kv_cache_usage_ratio{}"] == values["kv_cache_usage_perc{}"] == 0


def test_metrics_mirror_what_was_moved_between_tiers() -> None:
    metrics = new_metrics()
    switching = Switching(
        num_swapped=4,
        num_arriving=2,
        stall_s={"swap_in": 0.75, "conflict": 0.25},
        num_conflicts=3,
        tiers=[TierUse("host", 80, 20), TierUse("disk", 500, 499)],
        links=[LinkUse("device_to_host", 9000, 7, 0.5, 1), LinkUse("disk_to_device", 10, 1, 2, 0)],
    )
    metrics.on_snapshot(snapshot(101.0, service={}, switching=switching))
    values = exported(metrics)
    expected = {
        "num_requests_swapped{}": 4,
        "num_requests_arriving{}": 2,
        "switch_stall_seconds_total{cause=swap_in}": 0.75,
        "switch_stall_seconds_total{cause=conflict}": 0.25,
        "switch_conflicts_total{}": 3,
        "kv_host_blocks{state=kept}": 20,
        "kv_host_blocks{state=free}": 60,
        "cpu_cache_usage_perc{}": 0.25,
        "kv_disk_blocks{state=free}": 1,
        "kv_swap_bytes_total{direction=device_to_host}": 9000,
        "kv_swap_copies_total{direction=device_to_host}": 7,
        "kv_swap_seconds_total{direction=disk_to_device}": 2,
        "kv_swap_failures_total{direction=device_to_host}": 1,
    }
    assert {name: values[name] for name in expected} == expected


def test_metrics_say_nothing_of_tiers_that_are_not_there() -> None:
    metrics = new_metrics()
    metrics.on_snapshot(snapshot(101.0, service={}))
    names = {name.partition("{")[0] for name in exported(metrics)}
    assert not names & {"kv_host_blocks", "kv_disk_blocks", "cpu_cache_usage_perc"}


def test_metrics_forget_a_tenants_queue_when_it_is_empty() -> None:
    metrics = new_metrics()
    metrics.on_snapshot(snapshot(101.0, service={"blue": 1.0}))
    metrics.on_snapshot(snapshot(102.0, service={}))
    assert not [name for name in exported(metrics) if name.startswith("num_requests_waiting")]


def test_fairness_compares_service_per_weight_when_tenants_wait_throughout() -> None:
    metrics = new_metrics(weight_of={"blue": 3.0, "green": 1.0}.__getitem__)
    for second in range(60):
        metrics.on_snapshot(
            snapshot(100.0 + second, service={"blue": 60.0 * second, "green": 10.0 * second})
        )
    values = exported(metrics)
    # Over the last 30 s: 1800 / 3 against 300 / 1.
    assert values["jain_fairness_index{}"] == pytest.approx(900**2 / (2 * (600**2 + 300**2)))
    assert values["tenant_service_gap_tokens{}"] == pytest.approx(300.0)


def test_fairness_leaves_out_a_tenant_when_it_did_not_wait_throughout() -> None:
    metrics = new_metrics()
    for second in range(60):
        service = {"blue": 60.0 * second}
        if second > 50:
            service["green"] = 1.0
        metrics.on_snapshot(snapshot(100.0 + second, service=service))
    values = exported(metrics)
    assert values["jain_fairness_index{}"] == 1.0
    assert values["tenant_service_gap_tokens{}"] == 0.0


def test_attainment_is_that_of_the_last_minutes_when_it_changes() -> None:
    metrics = new_metrics()
    for second in range(0, 1000, 5):
        explanation, times = ended_completion(arrival_s=100.0 + second)
        metrics.on_finished(explanation, times, {"ttft": second >= 500})
        metrics.on_snapshot(snapshot(100.0 + second, service={}))
    assert exported(metrics)["slo_attainment_ratio{slo=ttft,tenant=blue}"] == 1.0


def test_metrics_tell_of_both_processes_when_the_engine_has_its_own() -> None:
    values = exported(new_metrics(engine_pid=os.getpid))
    assert values["engine_process_resident_memory_bytes{}"] > 0
    assert values["process_resident_memory_bytes{}"] > 0
    assert values["config_info{model=m}"] == 1


def test_metrics_of_two_servers_are_apart_when_both_live() -> None:
    first, second = new_metrics(), new_metrics()
    first.on_submitted("blue", 1)
    assert "tenant_requests_total{tenant=blue}" not in exported(second)


def test_every_instrument_has_samples_when_everything_happened() -> None:
    metrics = new_metrics()
    traffic = Traffic(metrics)
    for quarter in range(8):
        traffic.tick(100.0 + quarter / 4)
    silent = [i.name for i in metrics.counts if len(list(i.lines())) == NUM_HEADER_LINES]
    assert silent == []


def test_glossary_explains_exactly_the_metrics_there_are_when_compared() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (counter|gauge|histogram) \| (.*?) \|", _exported(), re.M)
    explained = {(name, kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    there_are = {
        (i.name.removeprefix(PREFIX), i.kind, i.labels) for i in Catalogue(version="1", config={})
    }
    assert explained == there_are


def _exported() -> str:
    """Return the part of the glossary on what `/metrics` exports."""
    return GLOSSARY.read_text(encoding="utf-8").partition("## What `/metrics` exports")[2]
