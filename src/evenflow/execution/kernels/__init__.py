"""The arithmetic of a forward pass: `Ops` and `Attention` back ends.

Knows: tensors, processors, threads.
Does not know: models, requests, who owns a block.

Invariants:
    Fast back ends are tested against the slow ones here (`torch_ops`, `reference`).
    On the CPU a result row has the same bits whatever the other rows are, however many threads run
    and wherever its blocks lie.
"""
