"""The server's side of the two processes, with a puppet for the engine."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from evenflow.core.errors import (
    DuplicateRequestError,
    EngineFailedError,
    EvenflowError,
    InvalidRequestError,
    RequestAbortedError,
)
from evenflow.core.pooling import PoolingParams
from evenflow.core.sampling import SamplingParams
from evenflow.engine.process import client
from evenflow.engine.process.client import AsyncEngine, DeltaStream, remote_error
from evenflow.engine.process.host import error_info
from evenflow.engine.process.messages import AddRequest, StepOutput
from support import puppet_engine

TIMEOUT_S = 60.0


@dataclass
class Heard:
    """What the engine told its owner."""

    outputs: list[StepOutput] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    failures: list[EvenflowError] = field(default_factory=list)


Start = Callable[..., AbstractAsyncContextManager[tuple[AsyncEngine, Heard]]]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Start:
    """Return a function that builds an engine whose process is a puppet."""
    monkeypatch.setattr(client, "serve_engine", puppet_engine.serve)

    @asynccontextmanager
    async def build(
        config: str = "ready", *, start: bool = True
    ) -> AsyncIterator[tuple[AsyncEngine, Heard]]:
        heard = Heard()
        built = AsyncEngine(
            config,  # type: ignore[arg-type]  # the puppet's
            on_output=heard.outputs.append,
            on_snapshot=lambda _: None,
            on_accepted=heard.accepted.append,
            on_rejected=heard.rejected.append,
            on_failure=heard.failures.append,
        )
        try:
            async with asyncio.timeout(TIMEOUT_S):
                if start:
                    await built.start()
                yield built, heard
        finally:
            await built.close()

    return build


def add(request_id: str, n: int = 1) -> AddRequest:
    return AddRequest(
        request_id=request_id, prompt_token_ids=[1], params=SamplingParams(n=n, max_tokens=9)
    )


async def read(stream: DeltaStream) -> list[tuple[str, int, str | None]]:
    deltas = []
    while batch := await stream.next_batch():
        deltas += [(delta.request_id, delta.index, delta.finish_reason) for delta in batch]
    return deltas


async def error_of(work: Awaitable[Any]) -> EvenflowError:
    with pytest.raises(EvenflowError) as caught:
        await work
    return caught.value


async def test_engine_says_what_it_can_do_when_it_has_started(engine: Start) -> None:
    progress: list[tuple[str, int, int]] = []
    async with engine(start=False) as (built, _):
        info = await built.start(lambda *done: progress.append(done))
        assert info == puppet_engine.INFO
    assert progress == [("weights", 4, 4)]


@pytest.mark.parametrize(
    ("config", "said"), [("failing", "no such model"), ("dying", "exit code 7")]
)
async def test_engine_says_why_it_did_not_start(engine: Start, config: str, said: str) -> None:
    async with engine(config, start=False) as (built, heard):
        error = await error_of(built.start())
        assert isinstance(error, EngineFailedError)
        assert said in str(error)
        assert built.failure is error
        assert heard.failures == []


async def test_stream_ends_once_per_completion_and_tells_the_owner_first(engine: Start) -> None:
    async with engine() as (built, heard):
        stream = built.add([add("3-a", n=2), add("1-b")])
        await stream.accepted()
        assert heard.accepted == ["3-a", "1-b"]
        deltas = await read(stream)
        endings = [delta for delta in deltas if delta[2] is not None]
        assert sorted(endings) == [("1-b", 0, "stop"), ("3-a", 0, "stop"), ("3-a", 1, "stop")]
        assert len(deltas) == sum(len(output.deltas) for output in heard.outputs) == 7
        assert (stream.is_complete, stream.num_open) == (True, 0)
        assert await stream.next_batch() == []


async def test_streams_get_their_own_deltas(engine: Start) -> None:
    async with engine() as (built, _):
        streams = [built.add([add(f"{count}-{count}")]) for count in (4, 1, 7)]
        lengths = [len(await read(stream)) for stream in streams]
        assert lengths == [4, 1, 7]


async def test_rejected_request_fails_its_stream_and_no_other(engine: Start) -> None:
    async with engine() as (built, heard):
        good, bad = built.add([add("2-a")]), built.add([add("no-b")])
        error = await error_of(bad.accepted())
        assert isinstance(error, InvalidRequestError)
        assert (error.code, error.param) == ("context_length_exceeded", "prompt")
        assert heard.rejected == ["no-b"]
        assert len(await read(good)) == 2


async def test_stream_of_several_requests_fails_when_one_is_rejected(engine: Start) -> None:
    async with engine() as (built, _):
        stream = built.add([add("hang-a"), add("no-b")])
        assert (await error_of(stream.accepted())).code == "context_length_exceeded"
        built.abort("hang-a", "its sibling was rejected")
        again = built.add([add("1-c")])
        assert len(await read(again)) == 1


async def test_aborted_request_still_gets_its_ending(engine: Start) -> None:
    async with engine() as (built, _):
        stream = built.add([add("hang-a", n=2)])
        await stream.next_batch()
        built.abort("hang-a", "the test")
        built.abort("hang-a", "twice")
        built.abort("unknown", "the test")
        assert await read(stream) == [("hang-a", 0, "abort"), ("hang-a", 1, "abort")]


async def test_all_requests_end_when_all_are_aborted(engine: Start) -> None:
    async with engine() as (built, _):
        streams = [built.add([add(f"hang-{name}")]) for name in "abc"]
        built.abort_all("the server stops")
        assert [(await read(stream))[-1][2] for stream in streams] == ["abort"] * 3


async def test_engine_takes_no_second_request_under_a_live_id(engine: Start) -> None:
    async with engine() as (built, _):
        first = built.add([add("hang-a")])
        with pytest.raises(DuplicateRequestError):
            built.add([add("1-b"), add("hang-a")])
        built.abort_all("the test")
        assert (await read(first))[-1] == ("hang-a", 0, "abort")
        assert len(await read(built.add([add("1-b")]))) == 1


async def test_call_returns_the_answer_or_raises_what_the_method_raised(engine: Start) -> None:
    async with engine() as (built, _):
        answers = await asyncio.gather(*(built.call("echo", number=number) for number in range(3)))
        assert answers == [["echo", {"number": number}] for number in range(3)]
        error = await error_of(built.call("fail"))
        assert (type(error), error.code) == (InvalidRequestError, "session_not_found")


async def test_call_that_nobody_waits_for_any_more_disturbs_nothing(engine: Start) -> None:
    async with engine() as (built, _):
        impatient = asyncio.create_task(built.call("echo"))
        await asyncio.sleep(0)
        impatient.cancel()
        assert await built.call("echo") == ["echo", {}]


async def test_sentences_are_embedded_in_order(engine: Start) -> None:
    async with engine() as (built, _):
        embedded = await built.encode_sentences([[1, 2], [3]], PoolingParams())
        assert embedded == [b"\x01\x02", b"\x03"]


@pytest.mark.parametrize("ending", ["die", "kill", "nonsense"])
async def test_everybody_hears_of_it_once_when_the_engine_is_gone(
    engine: Start, ending: str
) -> None:
    async with engine() as (built, heard):
        done = built.add([add("1-done")])
        await read(done)
        streams = [built.add([add(f"hang-{name}", n=2)]) for name in "ab"]
        call = asyncio.create_task(built.call("silence"))
        assert len(await streams[0].next_batch()) == 1
        if ending == "kill":
            os.kill(built.pid, signal.SIGKILL)
        else:
            streams.append(built.add([add(f"{ending}-c")]))
        errors = [await error_of(_drain(stream)) for stream in streams]
        errors.append(await error_of(call))
        assert {type(error) for error in errors} == {EngineFailedError}
        assert heard.failures == [built.failure]
        assert await done.next_batch() == []
        with pytest.raises(EngineFailedError):
            built.add([add("1-late")])
        await error_of(built.call("echo"))
        built.abort("hang-a", "too late")
    assert len(heard.failures) == 1


async def _drain(stream: DeltaStream) -> None:
    while await stream.next_batch():
        pass


async def test_close_gives_what_still_runs_an_ending_and_is_no_failure(engine: Start) -> None:
    async with engine() as (built, heard):
        stream = built.add([add("hang-a")])
        call = asyncio.create_task(built.call("silence"))
        await stream.next_batch()
        await built.close()
        assert isinstance(await error_of(_drain(stream)), RequestAbortedError)
        assert isinstance(await error_of(call), RequestAbortedError)
        assert not _is_alive(built.pid)
    assert heard.failures == []


async def test_close_ends_a_process_that_still_loads(engine: Start) -> None:
    async with engine("loading", start=False) as (built, heard):
        loading = asyncio.Event()
        starting = asyncio.create_task(built.start(lambda *_: loading.set()))
        await loading.wait()
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await built.close()
        assert not _is_alive(built.pid)
    assert heard.failures == []


async def test_close_does_nothing_before_the_start(engine: Start) -> None:
    async with engine(start=False) as (built, heard):
        await built.close()
        await built.close()
    assert heard == Heard()


async def test_engine_takes_nothing_after_close(engine: Start) -> None:
    async with engine() as (built, _):
        await built.close()
        with pytest.raises(EngineFailedError):
            built.add([add("1-a")])
        assert isinstance(await error_of(built.call("echo")), EngineFailedError)
        built.abort_all("too late")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequestError("n is wrong", param="n"),
        DuplicateRequestError("taken", param="request_id"),
        RequestAbortedError("ended"),
    ],
)
def test_error_keeps_what_callers_see_on_its_way_to_another_process(error: EvenflowError) -> None:
    arrived = remote_error(error_info(error))
    assert (arrived.code, str(arrived)) == (error.code, str(error))
    assert isinstance(arrived, InvalidRequestError) == isinstance(error, InvalidRequestError)
    assert getattr(arrived, "param", None) == getattr(error, "param", None)
