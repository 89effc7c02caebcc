"""Decides each step: who may queue, who runs, with how many tokens, and who gives up memory.

Knows: requests, budgets, policies, tenants' limits, the KV manager.
Does not know: torch, tensors, clocks (the time is handed in), what a token means.

Invariants:
    A step never exceeds its token budget.
    Every running request that needs one token gets it in every step, unless memory forces it out;
    what is left of the budget goes to prefill, and some always is.
    No tenant runs more requests than it may; one that runs as many holds up nobody else.
    Policies read views and return values; the scheduler, its door and its residents alone change
    requests.
"""
