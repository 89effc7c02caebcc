"""Copies on two tiers against an oracle that knows what each content is made of.

The machine plays memory manager and step: it writes blocks, gives them away as soon as they are
sent for, writes into them again, and looks at what arrives. A block holds one slot, and the slot of
content `c` holds the number `c`. Transfers take place as late as they may, so whoever is let into a
range too early leaves a wrong number somewhere.
"""

from __future__ import annotations

from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from evenflow.core.ids import BlockId, RequestId, TenantId
from evenflow.memory.extents import coalesce
from evenflow.memory.lower_tier import LowerTier
from evenflow.memory.prefix_cache import BlockHash
from evenflow.memory.residency import Arrival, Residency
from evenflow.memory.transfers import Tier
from evenflow.memory.worth import Worth
from support.slot_transfers import Slots, SlotTransfers

NUM_DEVICE_BLOCKS = 14
NUM_CHAINS = 5
CHAIN_LENGTH = 7

chains = st.integers(0, NUM_CHAINS - 1)
lengths = st.integers(1, CHAIN_LENGTH)
worths = st.builds(
    Worth, is_awaited=st.booleans(), urgency=st.integers(-2, 2), value=st.integers(0, 3)
)


def numbers(chain: int, length: int) -> list[int]:
    """Return what the first blocks of a chain hold; chains 0 and 1 begin alike."""
    return [at if chain < 2 and at < 3 else 100 * (chain + 1) + at for at in range(length)]


def named(number: int) -> BlockHash:
    return BlockHash(number.to_bytes(2, "big"))


class ResidencyMachine(RuleBasedStateMachine):
    @initialize(
        num_host_blocks=st.sampled_from([2, 9, 40, 40]),
        num_disk_blocks=st.sampled_from([0, 6, 40, 40]),
        tenant_share=st.sampled_from([0.3, 1.0]),
        failure_rate=st.sampled_from([0.0, 0.0, 0.3]),
        by_group=st.booleans(),
        keep_copies=st.sampled_from([True, False, False]),
        seed=st.integers(0, 1000),
    )
    def start(
        self,
        num_host_blocks: int,
        num_disk_blocks: int,
        tenant_share: float,
        failure_rate: float,
        by_group: bool,
        keep_copies: bool,
        seed: int,
    ) -> None:
        self.device: Slots = {}
        self.transfers = SlotTransfers(self.device, 1, Random(seed), failure_rate=failure_rate)
        self.host = LowerTier(Tier.HOST, num_host_blocks, tenant_share=tenant_share)
        self.disk = LowerTier(Tier.DISK, num_disk_blocks) if num_disk_blocks else None
        self.residency = Residency(
            self.transfers, self.host, self.disk, by_group=by_group, keep_copies=keep_copies
        )
        self.free = [BlockId(block_id) for block_id in range(NUM_DEVICE_BLOCKS)]
        # What lies on the device: the numbers, and where.
        self.resident: list[tuple[list[int], list[BlockId]]] = []
        self.arriving: dict[str, tuple[Arrival, list[int], list[BlockId]]] = {}
        self.num_sent = 0

    def take(self, num_blocks: int) -> list[BlockId]:
        """Take the blocks that were freed last."""
        return [self.free.pop() for _ in range(num_blocks)]

    # ---- What memory does ----------------------------------------------------------------------

    @rule(chain=chains, length=lengths, stores=st.booleans(), worth=worths)
    def compute(self, chain: int, length: int, stores: bool, worth: Worth) -> None:
        self.poll()
        content = numbers(chain, min(length, len(self.free)))
        if not content:
            return
        block_ids = self.take(len(content))
        self.transfers.fence(self.residency.conflicts(coalesce(sorted(block_ids))))
        self.device.update(
            ((block_id, 0), number) for block_id, number in zip(block_ids, content, strict=True)
        )
        self.resident.append((content, block_ids))
        if stores:
            self.store(-1, False, worth, "a")

    @precondition(lambda self: self.resident)
    @rule(
        at=st.integers(0, 20),
        goes_on=st.booleans(),
        worth=worths,
        tenant=st.sampled_from("ab"),
        is_spare=st.booleans(),
    )
    def store(
        self, at: int, goes_on: bool, worth: Worth, tenant: str, is_spare: bool = False
    ) -> None:
        at %= len(self.resident)
        content, block_ids = self.resident[at]
        names = [named(number) for number in content]
        num_clean = self.residency.num_clean(names)
        below = worth if is_spare else None
        stored = self.residency.store(names, block_ids, TenantId(tenant), below=below)
        self.host.appraise(names, worth, tenant, is_chain=not is_spare)
        assert stored.num_clean == num_clean
        assert stored.num_clean + stored.num_written + stored.num_left_out == len(content)
        if not goes_on:
            self.free += self.resident.pop(at)[1]

    @rule(chain=chains, length=lengths, num_times=st.integers(0, 3))
    def load(self, chain: int, length: int, num_times: int) -> None:
        """Load a chain and let it arrive at some time, or at once and then perhaps again."""
        self.poll()
        for number in range(chain, chain + NUM_CHAINS):
            content = numbers(number % NUM_CHAINS, length)
            if self.send_for(content):
                break
        for _ in range(num_times):
            if self.arriving:
                self.wait(-1)
                self.send_for(content)

    def send_for(self, content: list[int]) -> bool:
        """Load what there is of a chain, and say whether there is any."""
        places = self.residency.find(map(named, content))[: len(self.free)]
        if places:
            block_ids = self.take(len(places))
            name = str(self.num_sent)
            self.num_sent += 1
            arrival = self.residency.load(places, block_ids, RequestId(name))
            self.arriving[name] = arrival, content[: len(places)], block_ids
        return bool(places)

    @precondition(lambda self: self.arriving)
    @rule(at=st.integers(0, 20))
    def abort(self, at: int) -> None:
        name = list(self.arriving)[at % len(self.arriving)]
        self.residency.forget(RequestId(name))
        self.free += self.arriving.pop(name)[2]

    # ---- What time does ------------------------------------------------------------------------

    @rule()
    def poll(self) -> None:
        _, arrived = self.residency.poll()
        for name, arrival in arrived.items():
            expected, content, block_ids = self.arriving.pop(name)
            assert arrival is expected
            if arrival.failure is None:
                assert [self.device.get((block_id, 0)) for block_id in block_ids] == content
                self.resident.append((content, block_ids))
            else:
                self.free += block_ids
        self.residency.spill()

    @precondition(lambda self: self.arriving)
    @rule(at=st.integers(0, 20))
    def wait(self, at: int) -> None:
        name = list(self.arriving)[at % len(self.arriving)]
        self.transfers.wait(self.arriving[name][0].tickets)
        self.poll()
        assert name not in self.arriving

    # ---- What becomes of copies ----------------------------------------------------------------

    @rule(
        chain=chains,
        length=lengths,
        worth=worths,
        tenant=st.sampled_from("ab"),
        how=st.sampled_from(["worth"] * 3 + ["withdraw", "lose"]),
    )
    def reconsider(self, chain: int, length: int, worth: Worth, tenant: str, how: str) -> None:
        names = [named(number) for number in numbers(chain, length)]
        if how == "worth":
            self.host.appraise(names, worth, tenant)
        elif how == "withdraw":
            self.host.withdraw(names, tenant)
        elif length < CHAIN_LENGTH:
            self.residency.distrust(names)
            assert not any(self.residency.find([name]) for name in names)
        else:
            self.residency.clear()

    @invariant()
    def integrity(self) -> None:
        if hasattr(self, "residency"):
            self.residency.check_integrity()

    @invariant()
    def everybody_has_what_is_theirs(self) -> None:
        """Nothing that is on its way writes into a block that somebody computes with."""
        for content, block_ids in getattr(self, "resident", ()):
            assert [self.device.get((block_id, 0)) for block_id in block_ids] == content

    def teardown(self) -> None:
        if not hasattr(self, "residency"):
            return
        while self.residency.is_busy:
            self.transfers.close()
            self.poll()
        assert not self.arriving
        assert self.host.num_unheld == self.host.num_blocks
        assert self.disk is None or self.disk.num_unheld == self.disk.num_blocks
        for chain in range(NUM_CHAINS):
            for number in numbers(chain, CHAIN_LENGTH):
                for tier, block_id in self.residency.find([named(number)]):
                    assert self.transfers.stores[tier.tier][block_id, 0] == number


ResidencyMachine.TestCase.settings = settings(
    max_examples=300, stateful_step_count=50, deadline=None, derandomize=True
)
TestResidency = ResidencyMachine.TestCase
