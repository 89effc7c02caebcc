"""Prefill and decode on instances of their own."""

from __future__ import annotations

import math

import pytest

from evenflow.execution.costs import StepShape
from evenflow.simulation.disaggregated import InstancePool, simulate_disaggregated
from evenflow.simulation.instance import SimulationSettings
from evenflow.simulation.result import SimulationResult
from evenflow.workloads.request import WorkloadRequest
from support.step_costs import OneByOne

SETTINGS = SimulationSettings(num_blocks=200, block_size=4, max_num_batched_tokens=512)


class Costs(OneByOne):
    """A second for a chunk, a tenth for a step of decodes."""

    description = "a test"

    def step_s(self, shape: StepShape) -> float:
        # What is left of a hand-over, less than a block, is no prompt.
        has_prompt = any(new > SETTINGS.block_size for new, _ in shape.chunks)
        return 1.0 if has_prompt else 0.1


def request(arrival_s: float, num_prompt: int = 20, num_output: int = 11) -> WorkloadRequest:
    return WorkloadRequest(
        num_prompt_tokens=num_prompt, num_output_tokens=num_output, arrival_s=arrival_s
    )


def served(
    requests: list[WorkloadRequest], *, prefillers: int = 1, decode: SimulationSettings = SETTINGS
) -> SimulationResult:
    return simulate_disaggregated(
        requests,
        InstancePool(SETTINGS, Costs(), prefillers),
        InstancePool(decode, Costs()),
        transfer_s=lambda num_tokens: 0.01 * num_tokens,
    )


def test_request_passes_prefill_link_and_decode() -> None:
    result = served([request(5.0)])
    assert result.arrival_s.tolist() == [5.0]
    assert result.first_token_s.tolist() == pytest.approx([6.0])
    assert result.end_s.tolist() == pytest.approx([6.0 + 0.2 + 10 * 0.1])
    assert result.num_output_tokens.tolist() == [11]
    assert result.itl_counts.sum() == 10
    assert result.itl_s.max() == pytest.approx(0.3)


def test_decodes_are_not_held_up_by_prompts() -> None:
    result = served([request(0.0, num_output=60), request(1.5), request(1.6), request(1.7)])
    assert result.itl_s.max() < 1.0
    assert result.itl_counts.sum() == 59 + 3 * 10


def test_request_with_one_token_never_leaves_the_prefill_instance() -> None:
    result = served([request(0.0, num_output=1)])
    assert (result.end_s[0], result.num_output_tokens[0]) == (1.0, 1)


def test_prompts_are_spread_over_the_prefill_instances() -> None:
    at_once = [request(0.0, num_prompt=400), request(0.0, num_prompt=400)]
    alone, spread = served(at_once), served(at_once, prefillers=2)
    assert alone.first_token_s.tolist() == pytest.approx([1.0, 2.0])
    assert spread.first_token_s.tolist() == pytest.approx([1.0, 1.0])


def test_requests_wait_for_memory_of_the_decode_instance_and_none_is_lost() -> None:
    small = SimulationSettings(num_blocks=12, block_size=4)
    result = served([request(0.1 * n) for n in range(12)], decode=small)
    assert result.num_output_tokens.tolist() == [11] * 12
    assert not math.isnan(result.end_s.sum())
    assert result.itl_s.max() > 1.0


def test_kv_that_was_handed_over_is_not_displaced_by_that_of_others_who_come_with_it() -> None:
    small = SimulationSettings(num_blocks=10, block_size=4)
    result = served([request(0.0) for _ in range(3)], decode=small)
    # A prompt that is computed again takes a second.
    assert result.itl_s.max() < 3.0
    assert result.end_s[0] == pytest.approx(1.0 + 0.2 + 10 * 0.1)
    assert result.end_s[1] == pytest.approx(1.0 + 0.2 + 2 * 10 * 0.1)
