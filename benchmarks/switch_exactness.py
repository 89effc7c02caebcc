"""Whether requests have the tokens of their lone runs, however often and roughly they are switched.

Conversations of three turns run on the real model in a device memory that holds a third of them. In
every step half of those who run are preempted, priorities change, transfers to and from host and
disk stall for 50 ms, fail or are torn, copies are dropped, requests are aborted, and blocks that
nobody has are filled with NaN. Then come other settings: either layout, prefix caching or not,
partial or complete preemption, copies beside or between the steps, small and large lower tiers,
transfers without faults. See `tests/support/switch_storm.py`, which the tests use as well.

The last line on stdout is one JSON object:
    switches: requests that were preempted.
    requests: turns that ran to their end; each was compared with its lone run.
    aborted: turns that were aborted; what they had by then was compared.
    steps: steps of the model.
    settings: combinations of settings.
    moved_blocks: KV blocks that were moved, by link.
    failed_transfers: transfers that failed, all of them because they were told to.
    conflicts: transfers that a step had to wait for, because it wrote into a block they still read
        or wrote.
    mismatches: turns whose tokens differ from their lone run.
    seconds: that all of it took, without the lone runs.

The exit status is 1 if there are mismatches.

Usage: python benchmarks/switch_exactness.py [--switches 10000] [--quick] [--seed 1]
           [--model smollm2]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from evenflow import LLM
from support.switch_storm import Storm, Tally, answer_alone, make_conversations, weathers

SWITCHES_EACH = 250


def rage(llm: LLM, num_switches: int, seed: int, num_conversations: int) -> dict[str, object]:
    """Return what happened in as much weather as it takes."""
    conversations = make_conversations(num_conversations)
    answer_alone(llm, conversations)
    began_s = time.perf_counter()
    tally = Tally()
    num_settings = 0
    for weather in weathers(seed):
        num_settings += 1
        with TemporaryDirectory(prefix="evenflow-storm-") as folder:
            each = min(SWITCHES_EACH, num_switches - tally.num_switches)
            tally.add(Storm(llm, conversations, weather, Path(folder)).rage(each))
        print(
            f"{tally.num_switches} switches, {tally.num_requests} turns, "
            f"{len(tally.mismatches)} mismatches: {weather}",
            flush=True,
        )
        if tally.num_switches >= num_switches:
            break
    for mismatch in tally.mismatches:
        print(mismatch)
    return {
        "switches": tally.num_switches,
        "requests": tally.num_requests,
        "aborted": tally.num_aborted,
        "steps": tally.num_steps,
        "settings": num_settings,
        "moved_blocks": dict(sorted(tally.num_blocks.items())),
        "failed_transfers": tally.num_failures,
        "conflicts": tally.num_conflicts,
        "mismatches": len(tally.mismatches),
        "seconds": round(time.perf_counter() - began_s, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--switches", type=int, default=10_000)
    parser.add_argument("--quick", action="store_true", help="300 switches of few conversations")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", default="smollm2")
    arguments = parser.parse_args()
    llm = LLM(arguments.model, num_blocks_override=64, max_model_len=512)
    num_switches, num_conversations = (300, 4) if arguments.quick else (arguments.switches, 16)
    result = rage(llm, num_switches, arguments.seed, num_conversations)
    print(json.dumps(result))
    return 1 if result["mismatches"] else 0


if __name__ == "__main__":
    sys.exit(main())
