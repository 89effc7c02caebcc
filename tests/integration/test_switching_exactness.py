"""A request's tokens do not depend on how often and how roughly it is switched.

`benchmarks/switch_exactness.py` does the same for as many switches as one has time for.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from evenflow import LLM
from support.switch_storm import (
    Conversation,
    Storm,
    Weather,
    answer_alone,
    make_conversations,
    weathers,
)

pytestmark = [pytest.mark.model, pytest.mark.slow]

NUM_SWITCHES = 85


@pytest.fixture(scope="module")
def conversations(smollm2: LLM) -> list[Conversation]:
    conversations = make_conversations(8)
    answer_alone(smollm2, conversations)
    return conversations


@pytest.mark.parametrize("weather", list(islice(weathers(1), 8)), ids=str)
def test_tokens_equal_a_lone_run_whatever_the_weather(
    smollm2: LLM, conversations: list[Conversation], weather: Weather, tmp_path: Path
) -> None:
    tally = Storm(smollm2, conversations, weather, tmp_path).rage(NUM_SWITCHES)
    assert tally.mismatches == []
    assert tally.num_switches >= NUM_SWITCHES
    assert tally.num_requests > tally.num_aborted
    assert tally.num_blocks["device to host"]
    assert tally.num_blocks["host to device"]
    assert (tally.num_failures > 0) is not weather.is_fair
    assert (tally.num_blocks["host to disk"] > 0) is (weather.num_disk_blocks > 0)
