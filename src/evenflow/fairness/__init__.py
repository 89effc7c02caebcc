"""Tenants: who they are, what they may use, what service they received.

Knows: tenants, weights and limits, the keys that tell who is asking, service counters, and the
    figures that say how fair a division was.
Does not know: requests, queues, memory, HTTP, when anything happened. Random bytes are handed in.

Invariants:
    There are boundedly many tenants, whatever names people send.
    A count of service only grows. Virtual counters are derived from it; lifts change those alone.
    No key is stored, logged or shown; only salted digests of keys are.
"""
