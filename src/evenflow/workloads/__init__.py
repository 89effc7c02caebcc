"""Workloads: traces in and out, generators of requests, and the client that sends them.

Knows: what requests look like before they are sent, when they arrive, what recorded workloads are
    like and how to make more of them, and how to send requests to a server that speaks OpenAI's
    API and time its answers.
Does not know: the engine, what became of requests, terminals, files of results.

Invariants:
    Generators are pure: the same arguments and the same random generator give the same requests.
    Only `client` and `server` touch the network, and only `client` reads a clock.
    A workload can be written as a trace and read back without losing anything.
"""
