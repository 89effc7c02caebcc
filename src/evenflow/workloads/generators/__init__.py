"""Generators: endless streams of requests, drawn one after the other.

Knows: arrival processes, conversations, agents, trees of prefixes, mixes of clients.
Does not know: files of traces, engines, how long a stream should be.

Invariants:
    A stream is a pure function of its arguments and its random generator.
    A stream is in order of arrival and holds a bounded number of requests. A session's turns come
    one after the other, all with the arrival of the first, so that they follow on their own.
    Streams of different names share no session. `merged` in `transforms.py` mixes them.
"""

from evenflow.workloads.generators.lengths import IndependentPairs, LengthPairs, RecordedPairs
from evenflow.workloads.generators.lone import lone_requests
from evenflow.workloads.generators.prefix_tree import prefix_tree_requests
from evenflow.workloads.generators.servegen import ClientMix
from evenflow.workloads.generators.sessions import (
    Agents,
    Conversations,
    agents,
    conversations,
)
from evenflow.workloads.generators.times import (
    burst_times,
    diurnal_times,
    piecewise_times,
    poisson_times,
    renewal_times,
)

__all__ = [
    "Agents",
    "ClientMix",
    "Conversations",
    "IndependentPairs",
    "LengthPairs",
    "RecordedPairs",
    "agents",
    "burst_times",
    "conversations",
    "diurnal_times",
    "lone_requests",
    "piecewise_times",
    "poisson_times",
    "prefix_tree_requests",
    "renewal_times",
]
