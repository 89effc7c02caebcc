"""The engine under another clock: what would happen on hardware that is not here.

Knows: models and devices in numbers, how long their steps and transfers take, virtual time.
Does not know: how anything is decided. It has no scheduling and no memory code of its own, and no
    torch: the engine that serves is the engine that is simulated.

Invariants:
    The same trace, settings and costs give the same result, on every machine.
    Only the virtual clock tells time; nothing here waits.
    A device and a model are one data file each, and each file says where its figures come from.
"""
