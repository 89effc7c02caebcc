"""What one process says is what the other one hears."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenflow.core.events import EventKind, RequestEvent, WaitReason
from evenflow.core.ids import TenantId
from evenflow.core.pooling import PoolingParams
from evenflow.core.sampling import SamplingParams
from evenflow.core.slo import Slo
from evenflow.core.structured import StructuredOutput
from evenflow.engine.limits import ModelLimits
from evenflow.engine.outputs import Delta, RequestMetrics
from evenflow.engine.process import messages
from evenflow.engine.process.messages import Command, Output
from evenflow.memory.kv_cache_stats import KVCacheStats
from evenflow.scheduling.plan import TokenLogprobs

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
COUNT = st.integers(0, 2**31 - 1)
REAL = st.floats(allow_nan=False)
SECONDS = st.floats(0, 1e9)
TENANT = TEXT.map(TenantId)
OPTIONAL_SECONDS = st.none() | SECONDS
COUNTS = st.dictionaries(TEXT, COUNT, max_size=3)

sampling = st.builds(
    SamplingParams,
    n=st.integers(1, 128),
    max_tokens=st.none() | st.integers(1000, 2**31 - 1),
    min_tokens=st.integers(0, 1000),
    temperature=st.floats(0, 100) | st.integers(0, 100),
    top_k=st.integers(-1, 2**31 - 1),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 1),
    repetition_penalty=st.floats(0.01, 100),
    presence_penalty=st.floats(-2, 2),
    frequency_penalty=st.floats(-2, 2),
    logit_bias=st.dictionaries(COUNT, st.floats(-100, 100) | st.integers(-100, 100), max_size=4),
    stop=st.lists(TEXT.filter(bool), max_size=3).map(tuple),
    stop_token_ids=st.lists(COUNT, max_size=3).map(tuple),
    include_stop_str_in_output=st.booleans(),
    ignore_eos=st.booleans(),
    seed=st.none() | st.integers(-(2**63), 2**64 - 1),
    logprobs=st.none() | st.integers(0, 20),
    prompt_logprobs=st.none() | st.integers(0, 20),
    skip_special_tokens=st.booleans(),
    structured=st.none()
    | st.builds(StructuredOutput, st.just("regex"), TEXT.filter(bool), param=TEXT),
)
pooling = st.builds(
    PoolingParams, normalize=st.booleans(), dimensions=st.none() | st.integers(1, 2**31 - 1)
)
slos = st.builds(Slo, *[st.none() | st.floats(0, 1e9, exclude_min=True, allow_infinity=False)] * 2)
logprobs = st.builds(
    TokenLogprobs,
    COUNT,
    REAL,
    COUNT,
    st.lists(st.tuples(COUNT, REAL), max_size=3).map(tuple),
)
events = st.builds(
    RequestEvent,
    st.sampled_from(EventKind),
    SECONDS,
    TEXT,
    st.none() | st.sampled_from(WaitReason),
    COUNT,
    COUNT,
)
metrics = st.builds(
    RequestMetrics, SECONDS, OPTIONAL_SECONDS, SECONDS, COUNT, COUNT, COUNT, COUNT, TENANT
)
deltas = st.builds(
    Delta,
    TEXT,
    st.integers(0, 127),
    st.none() | COUNT,
    TEXT,
    st.none() | logprobs,
    st.none() | st.lists(logprobs, max_size=2),
    st.none() | st.sampled_from(["stop", "length", "abort", "error", "timeout"]),
    st.none() | COUNT | TEXT,
    st.none() | metrics,
    st.none() | TEXT,
    st.lists(events, max_size=2).map(tuple),
    st.none() | st.binary(max_size=8),
)
kv_stats = st.builds(KVCacheStats, *[COUNT] * 6, SECONDS, *[COUNT] * 3)
switchings = st.builds(
    messages.Switching,
    COUNT,
    COUNT,
    st.dictionaries(TEXT, SECONDS, max_size=2),
    COUNT,
    st.lists(st.builds(messages.TierUse, TEXT, COUNT, COUNT), max_size=2),
    st.lists(st.builds(messages.LinkUse, TEXT, COUNT, COUNT, SECONDS, COUNT), max_size=2),
)
snapshots = st.builds(
    messages.Snapshot,
    at_s=SECONDS,
    is_paused=st.booleans(),
    tenants=st.dictionaries(
        TENANT, st.builds(messages.TenantState, COUNT, COUNTS, SECONDS), max_size=2
    ),
    kv=kv_stats,
    preemptions=st.lists(st.builds(messages.Preemptions, TEXT, TEXT, TENANT, COUNT), max_size=2),
    switching=switchings,
    steps=st.lists(
        st.builds(messages.StepSample, *[SECONDS] * 4, COUNT, COUNT, SECONDS), max_size=2
    ),
    num_steps=COUNT,
    step_s=st.dictionaries(TEXT, SECONDS, max_size=2),
)
error_infos = st.builds(messages.ErrorInfo, TEXT, TEXT, st.none() | TEXT, st.booleans())
limits = st.builds(ModelLimits, COUNT, COUNT, st.frozensets(COUNT, max_size=3), st.none() | COUNT)
values = st.recursive(
    st.none() | st.booleans() | COUNT | REAL | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=5,
)

MESSAGES: dict[type, st.SearchStrategy[Any]] = {
    messages.AddRequest: st.builds(
        messages.AddRequest,
        request_id=TEXT,
        prompt_token_ids=st.lists(COUNT, max_size=4),
        params=sampling,
        pooling=st.none() | pooling,
        priority=st.integers(-(2**31), 2**31),
        tenant_id=TENANT,
        cache_salt=TEXT,
        slo=st.none() | slos,
        deadline_s=OPTIONAL_SECONDS,
        session_id=st.none() | TEXT,
    ),
    messages.Abort: st.builds(messages.Abort, TEXT, TEXT),
    messages.SetPriority: st.builds(messages.SetPriority, TEXT, st.integers(-(2**31), 2**31)),
    messages.EncodeSentences: st.builds(
        messages.EncodeSentences, COUNT, st.lists(st.lists(COUNT, max_size=3), max_size=2), pooling
    ),
    messages.AdminCall: st.builds(
        messages.AdminCall, COUNT, TEXT, st.dictionaries(TEXT, values, max_size=2)
    ),
    messages.Shutdown: st.just(messages.Shutdown()),
    messages.LoadProgress: st.builds(messages.LoadProgress, TEXT, COUNT, COUNT),
    messages.EngineInfo: st.builds(messages.EngineInfo, limits, COUNT, COUNT, TEXT),
    messages.Failed: st.builds(messages.Failed, error_infos),
    messages.Accepted: st.builds(messages.Accepted, TEXT),
    messages.Rejected: st.builds(messages.Rejected, TEXT, error_infos),
    messages.AdminReply: st.builds(messages.AdminReply, COUNT, values, st.none() | error_infos),
    messages.Snapshot: snapshots,
    messages.StepOutput: st.builds(
        messages.StepOutput, SECONDS, st.lists(deltas, max_size=2), st.lists(TEXT, max_size=2)
    ),
}


def test_every_message_is_tried() -> None:
    assert MESSAGES.keys() == {*get_args(Command), *get_args(Output)}


@pytest.mark.parametrize("kind", MESSAGES)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_message_arrives_as_it_was_sent(kind: type, data: st.DataObject) -> None:
    message = data.draw(MESSAGES[kind])
    side = Command if kind in get_args(Command) else Output
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=side) == message
