"""Plans a step before the tokens of the one before it are known.

When every running request samples a token in a step, nobody can be started and memory suffices,
the next step is known already: it computes those tokens, whatever they will be.

    planned     step 1 ──────▶ step 2 ──────▶ step 3
                   ╲ tokens      ╲ tokens
    taken in        step 1        step 2

A request that turns out to have ended, by a stop token, from outside or by an error, has computed
one token too many, of which nobody hears: the step's part of it is left out (`of_running`).

It rests on what every policy promises: a running request that lacks one token gets it.

Knows: when a step leaves nothing to decide for the next.
Does not know: what is sampled, when steps run.
"""

from __future__ import annotations

from evenflow.core.events import WaitReason
from evenflow.core.request import Request
from evenflow.scheduling.plan import StepPlan
from evenflow.scheduling.scheduler import Scheduler

_ANY_TIME_S = 0.0  # for policies whose ranks do not change with time


def follow(scheduler: Scheduler, plan: StepPlan, now_s: float) -> StepPlan | None:
    """Plan the step after `plan`, which was planned last and is not taken in.

    Args:
        scheduler: all steps before `plan` are taken in.
        plan: of the step that runs.
        now_s: the time.

    Returns:
        None if there is something to decide first. Blocks may have been reserved all the same.
    """
    running, kv = scheduler.running, scheduler.kv
    if not (_can_be_put_off(scheduler, plan) and _reaches_all_ends(running, plan)):
        return None
    # The last token of an answer is not computed.
    going_on = [r for r in running if len(r.token_ids) + 1 < r.max_num_tokens]
    if not going_on or (scheduler.waiting and len(going_on) < len(running)):
        return None
    if not all(kv.ensure(r.request_id, len(r.token_ids) + 1) for r in going_on):
        return None
    tables = [kv.table(r.request_id) for r in going_on]
    following = StepPlan(going_on, [1] * len(going_on), tables, follows=True)
    scheduler.plan = following
    view = scheduler.view(now_s)
    scheduler.switcher.before_step(
        following,
        reversed(running),
        lambda: scheduler.waiting.first(view, scheduler.seats.full),
        now_s,
    )
    return following


def ranks_stand_still(scheduler: Scheduler) -> bool:
    """Return whether the order of requests is the same at all times."""
    return not (scheduler.policy.rank_changes_with_time or scheduler.policy.ranks_tenants)


def stands_still(scheduler: Scheduler) -> bool:
    """Return whether nobody who waits could be started as long as the same requests run."""
    if not scheduler.waiting:
        return True
    # A full block that becomes known may be what a request at the door was waiting for.
    may_find_blocks = scheduler.lacking is WaitReason.MEMORY and scheduler.kv.enable_prefix_caching
    # Prompts are through, so that there are tokens again.
    has_tokens = scheduler.lacking is WaitReason.TOKENS
    if scheduler.lacking is None or may_find_blocks or has_tokens:
        return False
    return ranks_stand_still(scheduler) and not _may_displace(scheduler)


def _can_be_put_off(scheduler: Scheduler, plan: StepPlan) -> bool:
    """Return whether nothing is to be decided after a step, or nothing that cannot wait for one.

    Where those who wait may come to be ahead, by rank or by a block that fills, that is looked at
    after every second step.
    """
    if scheduler.is_paused or scheduler.arriving or scheduler.kv.has_shared_tables:
        return False
    # Who neither runs nor waits is held until the prompt it shares is computed.
    if len(scheduler.requests) > len(scheduler.running) + len(scheduler.waiting):
        return False
    lacks_room = scheduler.lacking not in (None, WaitReason.TOKENS)
    return stands_still(scheduler) or (lacks_room and not plan.follows)


def _reaches_all_ends(running: list[Request], plan: StepPlan) -> bool:
    """Return whether all who run sample in a step, without which nothing follows, and may follow.

    What a grammar allows and what a penalty is for depends on the token itself.
    """
    counts = dict(zip(plan.requests, plan.num_new_tokens, strict=True))
    return not plan.coasting and all(
        r.num_computed_tokens + counts.get(r, 0) == len(r.token_ids)
        and r.pooling is None
        and r.grammar is None
        and not r.sampling.has_penalties
        for r in running
    )


def _may_displace(scheduler: Scheduler) -> bool:
    """Return whether who waits may take the place of somebody, now or when a switch is due."""
    view = scheduler.view(_ANY_TIME_S)
    first = scheduler.waiting.first(view, scheduler.seats.full)
    if first is None or not scheduler.running:
        return False
    last = scheduler.policy.victims(scheduler.running)[0]
    return scheduler.policy.displaces(first, last, view)
