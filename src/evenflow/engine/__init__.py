"""Ties scheduling to execution: the step, and what a person calls from Python.

Knows: everything below it.
Does not know: HTTP, clusters, simulated time.

Invariants:
    `Engine.step` is the only thing that drives the system: schedule, execute, update, emit.
    One request's failure never reaches another.
"""
