"""The published traces whose rows need more than other names for the columns."""

from __future__ import annotations

from pathlib import Path

import pytest

from evenflow.workloads.request import Segment, WorkloadRequest
from evenflow.workloads.traces import BadRow, iter_trace, read_trace


def read(path: Path, content: str) -> list[WorkloadRequest]:
    path.write_text(content)
    return list(iter_trace(path))


def test_azure_trace_starts_with_its_first_row(tmp_path: Path) -> None:
    requests = read(
        tmp_path / "azure.csv",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n"
        "2023-11-16 18:15:50.9951690,396,109\n",
    )
    assert [r.arrival_s for r in requests] == [0.0, 4.314579]
    assert [(r.num_prompt_tokens, r.num_output_tokens) for r in requests] == [(374, 44), (396, 109)]


def test_azure_trace_of_2024_has_a_time_zone(tmp_path: Path) -> None:
    requests = read(
        tmp_path / "azure.csv",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2024-05-10 00:00:00.009930+00:00,2162,5\n"
        "2024-05-10 00:00:00.017335+00:00,2399,6\n",
    )
    assert requests[1].arrival_s == pytest.approx(0.007405)


BURSTGPT = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
BURSTGPT_3 = (
    "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
)


def test_burstgpt_leaves_failed_requests_out_and_names_tenants(tmp_path: Path) -> None:
    rows = (
        "5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,10,0,10,API log\n50,GPT-4,9,3,12,API log\n"
    )
    requests = read(tmp_path / "burst.csv", BURSTGPT + rows)
    assert [(r.arrival_s, r.tenant) for r in requests] == [
        (5.0, "ChatGPT, Conversation log"),
        (50.0, "GPT-4, API log"),
    ]


def test_burstgpt_sessions_pause_from_the_end_of_an_answer(tmp_path: Path) -> None:
    rows = (
        "0,7,4,ChatGPT,10,5,15,Conversation log\n"
        "3,,1,ChatGPT,10,5,15,API log\n"
        "20,7,2,ChatGPT,40,5,45,Conversation log\n"
        "21,7,2,ChatGPT,60,5,65,Conversation log\n"
    )
    requests = read(tmp_path / "burst.csv", BURSTGPT_3 + rows)
    assert [(r.session, r.turn, r.think_time_s) for r in requests] == [
        ("7", 0, 0.0),
        (None, 0, 0.0),
        ("7", 1, 16.0),
        ("7", 2, 0.0),
    ]


def test_sharegpt_turns_join_the_slices_of_a_chain(tmp_path: Path) -> None:
    header = "conversation,chain,slice,turn,role,chars,tokens\n"
    rows = (
        "0,3,0,0,system,9,2\n0,3,0,1,user,9,5\n0,3,0,2,assistant,9,30\n"
        "1,4,0,0,user,9,6\n1,4,0,1,assistant,9,60\n"
        "2,3,2,0,assistant,9,7\n2,3,2,1,user,9,8\n2,3,2,2,assistant,9,80\n"
    )
    path = tmp_path / "turns.csv"
    requests = read(path, header + rows)
    assert [
        (r.session, r.turn, r.continues, r.num_prompt_tokens, r.num_output_tokens) for r in requests
    ] == [
        ("chain 3", 0, False, 7, 30),
        ("chain 4", 0, False, 6, 60),
        ("chain 3", 1, True, 15, 80),
    ]
    assert not read_trace(path)[1]


def test_lmcache_agents_have_blocks_of_64_and_pauses(tmp_path: Path) -> None:
    header = "session,agent,seq,t_s,input_tokens,output_tokens,shared_prefix_tokens,hash_ids\n"
    rows = (
        "m/1,miniswe,0,0.0,100,4,0,7 8\nm/1,miniswe,1,2.5,130,0,64,7 9 10\nm/2,tau,0,0.0,0,5,0,\n"
    )
    first, second = read(tmp_path / "agents.csv", header + rows)
    assert first.segments == (Segment("block 7", 64), Segment("block 8", 36))
    assert (second.turn, second.think_time_s, second.num_output_tokens) == (1, 2.5, 1)
    assert (second.tenant, second.session, second.arrival_s) == ("miniswe", "m/1", 0.0)


CALLS = (
    "run,seq,start_s,dur_s,input_tokens,cache_write_tokens,cache_read_tokens,output_tokens,"
    "tool_calls,is_sidechain\n"
    "a,0,0.0,4.0,3,100,0,2,1,0\n"
    "a,1,6.0,1.0,5,50,100,9,1,0\n"
    "a,2,7.5,1.0,5,20,0,9,1,1\n"
    "a,3,9.0,1.0,5,100,0,9,1,0\n"
    "b,0,0.0,1.0,0,0,0,0,0,0\n"
)
TOOLS = (
    "run,seq,start_s,dur_s,tool,command,args_chars,result_chars,is_error\n"
    "a,0,4.0,1.5,Bash,ls,1,1,0\n"
    "a,1,3.9,0.2,Read,,1,1,0\n"
    "a,2,6.5,80.0,Task,,1,1,0\n"
)


def test_claude_code_pauses_are_split_into_tools_and_the_rest(tmp_path: Path) -> None:
    (tmp_path / "tool_calls.csv").write_text(TOOLS)
    requests = read(tmp_path / "llm_calls.csv", CALLS)
    assert [(r.think_time_s, r.tool_time_s) for r in requests] == [
        (0.0, 0.0),
        (2.0, 1.5),
        (0.5, 0.5),
        (0.5, 0.0),
    ]


def test_claude_code_prompts_grow_one_text_until_they_shrink(tmp_path: Path) -> None:
    requests = read(tmp_path / "llm_calls.csv", CALLS)
    assert [r.segments for r in requests] == [
        (Segment("a main 0", 103),),
        (Segment("a main 0", 155),),
        (Segment("a side 0", 25),),
        (Segment("a main 1", 105),),
    ]
    assert [r.turn for r in requests] == [0, 1, 2, 3]


def test_claude_code_has_no_tool_time_without_the_other_file(tmp_path: Path) -> None:
    requests = read(tmp_path / "llm_calls.csv", CALLS)
    assert {r.tool_time_s for r in requests} == {0.0}


def test_published_trace_reports_bad_rows_by_line(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46,374,44\nyesterday,396,109\n2023-11-16 18:15:47,many,1\n"
    )
    bad: list[BadRow] = []
    assert len(list(iter_trace(path, on_bad_row=bad.append))) == 1
    assert [row.line for row in bad] == [3, 4]
