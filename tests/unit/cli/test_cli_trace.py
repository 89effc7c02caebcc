from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from evenflow.cli import main
from evenflow.workloads.request import WorkloadRequest
from evenflow.workloads.traces import read_trace, write_trace


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["trace", *map(str, arguments)])


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """60 requests, 2 a second; every third begins a session of three turns."""
    path = tmp_path / "trace.jsonl"
    requests = [
        WorkloadRequest(
            num_prompt_tokens=100 + index % 7,
            num_output_tokens=20 + index % 5,
            arrival_s=index * 0.5,
            tenant="ab"[index % 2],
            session=f"s{index // 3}",
            turn=index % 3,
            continues=index % 3 > 0,
            think_time_s=1.0 if index % 3 else 0.0,
        )
        for index in range(60)
    ]
    write_trace(path, requests)
    return path


@pytest.fixture
def damaged(trace: Path) -> Path:
    trace.write_text(trace.read_text() + "nonsense\n")
    return trace


def test_trace_describe_prints_tables(trace: Path) -> None:
    result = run("describe", trace)
    assert result.exit_code == 0
    assert "rate (requests/s)" in result.stdout
    assert "turns of a session" in result.stdout


def test_trace_describe_prints_json(trace: Path) -> None:
    figures = json.loads(run("describe", trace, "--json").stdout)
    assert (figures["requests"], figures["sessions"], figures["tenants"]) == (60, 20, 2)
    assert figures["think_s"]["mean"] == 1.0


def test_trace_describe_draws_a_plot(trace: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = run("describe", trace, "--plot", tmp_path / "plot.png")
    assert result.exit_code == 0
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_trace_describe_refuses_bad_rows_by_number(damaged: Path) -> None:
    result = run("describe", damaged)
    assert result.exit_code == 2
    assert "Line 61: it is not JSON" in result.stderr
    assert "--skip-bad" in result.stderr


def test_trace_describe_skips_bad_rows_when_told(damaged: Path) -> None:
    result = run("describe", damaged, "--skip-bad", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["requests"] == 60
    assert "left out line 61" in result.stderr
    assert "1 rows left out" in result.stderr


def test_trace_describe_says_that_there_are_no_times(tmp_path: Path) -> None:
    path = tmp_path / "lengths.csv"
    path.write_text("prompt_tokens,output_tokens\n10,20\n11,21\n")
    result = run("describe", path)
    assert result.exit_code == 0
    assert "no arrival times" in result.stderr


def test_trace_convert_writes_what_it_reads(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46,9,1\n2023-11-16 18:15:48,8,2\n"
    )
    output = tmp_path / "out.jsonl.gz"
    assert run("convert", path, output).exit_code == 0
    requests, is_timed = read_trace(output)
    assert is_timed
    assert [(r.arrival_s, r.num_prompt_tokens) for r in requests] == [(0.0, 9), (2.0, 8)]


def test_trace_convert_writes_whole_prompts_for_mooncake(trace: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    assert run("convert", trace, output, "--to", "mooncake", "--limit", 3).exit_code == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["input_length"] for row in rows] == [100, 100 + 20 + 101, 221 + 21 + 102]
    assert all(
        row.keys() == {"timestamp", "input_length", "output_length", "hash_ids"} for row in rows
    )


@pytest.mark.parametrize(
    ("flags", "num_requests", "last_s"),
    [
        (("--rate", 20), 60, 3.0),
        (("--rate-factor", 0.5), 60, 59.0),
        (("--every", 4), 15, 28.0 - 3.0),
        (("--from", 3, "--until", 6), 6, 2.5),
    ],
)
def test_trace_scale_changes_rate_range_and_sessions(
    trace: Path, tmp_path: Path, flags: tuple, num_requests: int, last_s: float
) -> None:
    output = tmp_path / "out.jsonl"
    assert run("scale", trace, output, *flags).exit_code == 0
    requests, _ = read_trace(output)
    assert len(requests) == num_requests
    assert requests[-1].arrival_s == pytest.approx(last_s, rel=0.02)
    turns = {r.session: [] for r in requests}
    for request in requests:
        turns[request.session].append(request.turn)
    assert set(map(tuple, turns.values())) == {(0, 1, 2)}


def test_trace_scale_changes_lengths_in_place(trace: Path) -> None:
    flags = ("--prompt-factor", 2, "--max-prompt-tokens", 205, "--output-factor", 0.5)
    assert run("scale", trace, trace, *flags).exit_code == 0
    requests, _ = read_trace(trace)
    assert [r.num_prompt_tokens for r in requests[:4]] == [200, 202, 204, 205]
    assert requests[0].num_output_tokens == 10


def test_trace_scale_draws_starts_for_sessions_without_times(tmp_path: Path) -> None:
    path = tmp_path / "lengths.csv"
    path.write_text("prompt_tokens,output_tokens\n" + "10,20\n" * 50)
    output = tmp_path / "out.jsonl"
    refused = run("scale", path, output, "--rate", 2)
    assert refused.exit_code == 2
    assert "--start-rate" in refused.stderr
    assert run("scale", path, output, "--start-rate", 2).exit_code == 0
    times = [r.arrival_s for r in read_trace(output)[0]]
    assert len(set(times)) == 50
    assert times[-1] == pytest.approx(25, rel=0.4)


def test_trace_scale_takes_one_rate_only(trace: Path, tmp_path: Path) -> None:
    result = run("scale", trace, tmp_path / "o.jsonl", "--rate", 1, "--start-rate", 1)
    assert result.exit_code == 2


def test_trace_fit_prints_models_and_draws_from_them(trace: Path, tmp_path: Path) -> None:
    output = tmp_path / "drawn.jsonl"
    result = run("fit", trace, "--generate", 40, "--output", output)
    assert result.exit_code == 0
    assert "KS distance" in result.stdout
    assert len(read_trace(output)[0]) == 40


def test_trace_fit_prints_json(trace: Path) -> None:
    figures = json.loads(run("fit", trace, "--json").stdout)
    assert (figures["sessions"], figures["turns_mean"]) == (20, 3.0)
    assert figures["think_s"][0]["kind"] == "constant"


def test_trace_fit_draws_a_plot(trace: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = run("fit", trace, "--plot", tmp_path / "fit.png")
    assert result.exit_code == 0
    assert (tmp_path / "fit.png").read_bytes().startswith(b"\x89PNG")


def test_trace_fit_wants_a_file_to_draw_into(trace: Path) -> None:
    assert run("fit", trace, "--generate", 5).exit_code == 2


@pytest.mark.parametrize("kind", ["poisson", "bursts", "chat", "agents", "prefix-tree"])
def test_trace_generate_writes_the_same_trace_again(tmp_path: Path, kind: str) -> None:
    texts = []
    for name in ("first.jsonl", "second.jsonl"):
        flags = ("--num", 50, "--seed", 3, "--tenants", "a:2,b:1")
        assert run("generate", kind, tmp_path / name, *flags).exit_code == 0
        texts.append((tmp_path / name).read_text())
    assert texts[0] == texts[1]
    requests, _ = read_trace(tmp_path / "first.jsonl")
    assert len(requests) == 50
    assert {r.tenant for r in requests} <= {"a", "b"}


def test_trace_generate_bursts_comes_in_bursts(tmp_path: Path) -> None:
    figures = []
    for kind in ("poisson", "bursts"):
        run("generate", kind, tmp_path / f"{kind}.jsonl", "--num", 2000)
        described = run("describe", tmp_path / f"{kind}.jsonl", "--json")
        figures.append(json.loads(described.stdout)["gap_cv"])
    assert figures == pytest.approx([1.0, 2.0], rel=0.12)


def test_trace_generate_clients_needs_their_file(tmp_path: Path) -> None:
    assert run("generate", "clients", tmp_path / "out.jsonl").exit_code == 2


def test_trace_generate_clients_has_the_rate_asked_for(tmp_path: Path) -> None:
    levels = "p5,p25,p50,p75,p90,p95,p99,max"
    (tmp_path / "m_lengths.csv").write_text(
        f"client,t_s,field,mean,{levels}\n"
        + "".join(f"0,0,{name},9{',9' * 8}\n" for name in ("input_tokens", "output_tokens"))
    )
    arrivals = tmp_path / "m_arrivals.csv"
    arrivals.write_text("client,t_s,rate_rps,iat_cv,iat_dist,p1,p2\n0,0,500,1,Gamma,1,1\n")
    output = tmp_path / "out.jsonl"
    flags = ("--clients", arrivals, "--until", 600, "--rate", 2, "--num", 5000)
    assert run("generate", "clients", output, *flags).exit_code == 0
    requests, _ = read_trace(output)
    assert len(requests) == pytest.approx(1200, rel=0.1)
    assert requests[0].tenant == "client 0"
