"""`evenflow bench` against a scripted server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from evenflow.bench.config import BenchConfig
from evenflow.bench.run import run_benchmark
from evenflow.cli import main
from evenflow.workloads.traces import read_trace
from support.fake_openai import FakeOpenAI, serve_fake_openai

SMALL = ("--random-input-len", "8", "--random-output-len", "3", "--no-progress")
VLLM_KEYS = {
    *("date", "endpoint_type", "backend", "label", "model_id", "tokenizer_id", "num_prompts"),
    *("request_rate", "burstiness", "max_concurrency", "duration", "completed", "failed"),
    *("total_input_tokens", "total_output_tokens", "request_throughput", "request_goodput"),
    *("output_throughput", "total_token_throughput", "max_output_tokens_per_s"),
    "max_concurrent_requests",
    *(
        f"{statistic}_{metric}_ms"
        for statistic in ("mean", "median", "std", "p99")
        for metric in ("ttft", "tpot", "itl", "e2el")
    ),
}
VLLM_DETAILS = {
    *("input_lens", "output_lens", "ttfts", "itls", "start_times", "generated_texts", "errors"),
}


def bench(*args: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, ["bench", *args], env=env)


def bench_serve(fake: FakeOpenAI, *args: str, num: int = 5) -> Result:
    return bench("serve", "--base-url", fake.url, "--num-prompts", str(num), *SMALL, *args)


def saved(fake: FakeOpenAI, folder: Path, *args: str, num: int = 5) -> dict[str, Any]:
    path = folder / "result.json"
    where = ("--save-result", "--result-dir", str(folder), "--result-filename", path.name)
    result = bench_serve(fake, *where, *args, num=num)
    assert result.exit_code == 0, result.output
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def test_bench_serve_saves_the_keys_of_vllm(tmp_path: Path) -> None:
    with serve_fake_openai() as fake:
        content = saved(fake, tmp_path, "--metadata", "version=1.2")
    assert content.keys() >= VLLM_KEYS
    assert not content.keys() & VLLM_DETAILS
    assert (content["completed"], content["total_output_tokens"]) == (5, 15)
    assert (content["model_id"], content["request_rate"]) == ("fake-model", "inf")
    assert content["version"] == "1.2"


def test_bench_serve_saves_details_when_asked(tmp_path: Path) -> None:
    with serve_fake_openai() as fake:
        content = saved(fake, tmp_path, "--save-detailed")
    assert content.keys() >= VLLM_KEYS | VLLM_DETAILS
    assert content["output_lens"] == [3] * 5
    assert {len(gaps) for gaps in content["itls"]} == {2}
    assert content["generated_texts"][0] == " w0 w1 w2"


def test_bench_serve_prints_the_sections_asked_for() -> None:
    with serve_fake_openai() as fake:
        result = bench_serve(fake, "--percentile-metrics", "ttft", "--metric-percentiles", "75")
    assert "Time to First Token" in result.stdout
    assert "P75 TTFT (ms)" in result.stdout
    assert "Inter-token Latency" not in result.stdout


def test_bench_serve_measures_prompts_by_the_servers_tokeniser(tmp_path: Path) -> None:
    """A word is two tokens there, so eight tokens are four words."""
    with serve_fake_openai(has_tokenize=True) as fake:
        saved(fake, tmp_path)
    assert {len(body["prompt"].split()) for body in fake.bodies} == {4}


def test_bench_serve_says_that_lengths_are_words_when_nothing_counts() -> None:
    with serve_fake_openai() as fake:
        result = bench_serve(fake)
    assert "lengths are in words" in result.stderr
    assert {len(body["prompt"].split()) for body in fake.bodies} == {8}


def test_bench_serve_breaks_figures_down_by_tenant(tmp_path: Path) -> None:
    with serve_fake_openai() as fake:
        content = saved(fake, tmp_path, "--tenants", "a:2,b", "--goodput", "e2el:1e9", num=30)
    assert [content["tenants"][name]["completed"] for name in "ab"] == [20, 10]
    assert sum(body["user"] == "a" for body in fake.bodies) == 20
    assert 0 < content["jain_index"] <= 1
    assert content["request_goodput"] == content["request_throughput"]


def test_bench_serve_reports_failures_and_still_succeeds(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "good"}\n{"prompt": "bad"}\n')
    with serve_fake_openai(faults={"bad": "status_429"}) as fake:
        data = ("--dataset-name", "custom", "--dataset-path", str(path))
        result = bench_serve(fake, *data, "--custom-output-len", "2", num=4)
    assert result.exit_code == 0
    assert "http_429" in result.stderr
    assert "the queue is full" in result.stderr


def test_bench_serve_fails_when_no_request_succeeds() -> None:
    with serve_fake_openai(faults={"": "status_429"}) as fake:
        result = bench_serve(fake)
    assert result.exit_code == 1
    assert "Error [load_failed]" in result.stderr


def test_bench_serve_says_that_no_server_is_there() -> None:
    result = bench("serve", "--port", "9", "--num-prompts", "1")
    assert result.exit_code == 1
    assert "Error [server_unusable]" in result.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--goodput", "ttft"], "'ttft' is not NAME:NUMBER"),
        (["--header", "x"], "'x' is not KEY=VALUE"),
        (["--extra-body", "[1]"], "not a JSON object"),
        (["--percentile-metrics", "speed"], "'speed' is none of"),
        (["--metric-percentiles", "x"], "no list of numbers"),
        (["--num-prompts", "0"], "--num-prompts must be positive"),
    ],
)
def test_bench_serve_refuses_bad_flags(args: list[str], message: str) -> None:
    result = bench("serve", *args)
    assert result.exit_code == 2
    assert message in result.stderr


def test_bench_serve_sends_the_key_and_keeps_it_secret(tmp_path: Path) -> None:
    with serve_fake_openai() as fake:
        content = saved(fake, tmp_path, "--api-key", "sk-hidden", "--temperature", "0")
    assert fake.headers[0]["authorization"] == "Bearer sk-hidden"
    assert fake.bodies[0]["temperature"] == 0
    assert "sk-hidden" not in json.dumps(content)


def test_bench_serve_writes_a_trace_that_can_be_sent_again(tmp_path: Path) -> None:
    path = tmp_path / "load.jsonl"
    with serve_fake_openai() as fake:
        first = bench_serve(fake, "--request-rate", "200", "--save-trace", str(path))
        again = bench_serve(fake, "--dataset-name", "trace", "--dataset-path", str(path))
    assert (first.exit_code, again.exit_code) == (0, 0)
    requests, is_timed = read_trace(path)
    assert is_timed
    prompts = [body["prompt"] for body in fake.bodies]
    assert sorted(prompts[:5]) == sorted(prompts[5:]) == sorted(str(r.prompt) for r in requests)


def test_bench_serve_draws_plots(tmp_path: Path) -> None:
    with serve_fake_openai() as fake:
        saved(fake, tmp_path, "--plot", "--plot-timeline")
    for name in ("result.png", "result.timeline.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("backend", ["openai", "openai-chat"])
def test_bench_serve_waits_until_the_server_answers(tmp_path: Path, backend: str) -> None:
    with serve_fake_openai(num_not_ready=3) as fake:
        waiting = ("--ready-check-timeout-sec", "60", "--backend", backend)
        content = saved(fake, tmp_path, *waiting)
    assert (content["completed"], content["failed"]) == (5, 0)


def test_run_benchmark_reports_progress_and_leaves_warm_ups_out() -> None:
    started: list[int] = []
    ended: list[int] = []
    with serve_fake_openai() as fake:
        config = BenchConfig(
            base_url=fake.url,
            num_prompts=4,
            num_warmups=3,
            random_input_len=5,
            random_output_len=2,
        )
        result = run_benchmark(
            config,
            on_start=lambda requests: started.append(len(requests)),
            on_done=lambda record: ended.append(record.num_output_tokens),
        )
    assert started == [4]
    assert ended == [2] * 4
    assert len(fake.bodies) == 7
    assert result.summary["completed"] == len(result.records) == 4


def test_bench_compare_prints_ratios_and_warns_of_differences(tmp_path: Path) -> None:
    for name, rate, seed in (("a", 10.0, 0), ("b", 20.0, 1)):
        content = {"request_throughput": rate, "p99_ttft_ms": rate, "settings": {"seed": seed}}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    paths = [str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    result = bench("compare", *paths, "--plot", str(tmp_path / "ratios.png"))
    assert result.exit_code == 0
    rows = {line.split()[1]: line for line in result.stdout.splitlines() if "2.00" in line}
    assert "better" in rows["request_throughput"]
    assert "worse" in rows["p99_ttft_ms"]
    assert "seed is 0 in A, 1 in B" in result.stderr
    assert (tmp_path / "ratios.png").stat().st_size > 0


def test_bench_compare_prints_json(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"request_throughput": 4.0}))
    result = bench("compare", str(path), str(path), "--json")
    content = json.loads(result.stdout)
    assert content["figures"]["request_throughput"]["ratios"] == [1.0]
    assert content["differences"] == []


def test_bench_compare_needs_two_results(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("{}")
    result = bench("compare", str(path))
    assert result.exit_code == 2
    assert "at least two" in result.stderr
