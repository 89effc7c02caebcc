"""The engine in a process of its own, and how others talk to it.

    server process                              engine process
    AsyncEngine (client) ──commands──▶ EngineHost (host) ──▶ Engine.step()
                         ◀──outputs───

Parsing, tokenising and writing streams never hold up a step: the two processes share no
interpreter lock, and ZeroMQ moves the messages on a thread of its own that needs none.

Knows: which commands there are, when they are carried out (between steps), what comes back.
Does not know: HTTP, tenants' keys, what a body looks like.

Invariants:
    Every accepted request ends with exactly one delta per completion that has a finish reason,
    even when the engine process dies.
    Commands are carried out in the order in which they were sent.
"""
