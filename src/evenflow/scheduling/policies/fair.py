"""The virtual token counter with everything charged that a tenant costs the others."""

from __future__ import annotations

from evenflow.fairness.service import Charges
from evenflow.scheduling.policies.vtc import Vtc


class Fair(Vtc):
    """VTC that also charges recomputed tokens, swapped bytes and memory held.

    A token computed again costs as much as the first time. A MiB over PCIe takes about as long as
    a fifth of a token. At 0.01 per token and second, a memory full of 400,000 tokens of KV is worth
    4,000 weighted tokens a second, what an 8B model computes on the GPU that has such a memory: who
    fills the memory is charged like who keeps the processor busy.
    """

    charges = Charges(recomputed_token=1.0, swapped_mib=0.2, held_token_s=0.01)
