"""Words everybody uses: ids, clock, random streams, errors, events, requests, sampling.

Knows: what a request is, which life it may lead, how an error speaks.
Does not know: memory, scheduling, models, torch, event loops, HTTP.

Invariants:
    A request's status moves only along `status.TRANSITIONS`.
    Nothing here reads a clock or a random source; `Clock` is handed in and random numbers are
    functions of (seed, position).
"""
