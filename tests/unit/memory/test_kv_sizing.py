import re

import pytest

from evenflow.core.errors import KVMemoryError
from evenflow.memory.sizing import KVPlan, format_bytes, plan_kv_memory

MIB = 2**20


def plan(num_bytes: int, *, max_model_len: int = 2048, free_bytes: int | None = None) -> KVPlan:
    return plan_kv_memory(
        num_bytes,
        bytes_per_block=737_280,
        block_size=16,
        max_model_len=max_model_len,
        free_bytes=free_bytes,
    )


def test_plan_cuts_memory_into_whole_blocks():
    result = plan(2**30)
    assert result.num_blocks == 2**30 // 737_280 == 1456
    assert result.num_tokens == 1456 * 16
    assert result.num_bytes == 1456 * 737_280


def test_plan_predicts_how_many_requests_fit():
    result = plan(2**30)
    assert [result.num_requests_of(n) for n in (2048, 1024, 256, 17)] == [11, 22, 91, 728]


def test_plan_description_names_tokens_and_requests():
    assert plan(2**30).description() == (
        "1023.75 MiB in 1,456 blocks of 16 hold 23,296 tokens: "
        "enough at once for 11 requests of 2,048 tokens, 22 of 1,024 or 91 of 256"
    )


def test_plan_description_leaves_out_lengths_that_cannot_occur():
    assert (
        plan(2**30, max_model_len=512)
        .description()
        .endswith("enough at once for 45 requests of 512 tokens or 91 of 256")
    )


def test_plan_accepts_exactly_one_longest_request():
    assert plan(128 * 737_280).num_requests_of(2048) == 1


def test_plan_refuses_with_numbers_that_would_do_when_one_request_does_not_fit():
    with pytest.raises(KVMemoryError, match="one request of 2,048 tokens") as error:
        plan(100 * 737_280)
    assert "94371840 bytes" in error.value.why
    memory = re.search(r"--kv-cache-memory to at least (\d+)MiB", error.value.fix)
    length = re.search(r"--max-model-len to at most (\d+)", error.value.fix)
    assert plan(int(memory[1]) * MIB).num_requests_of(2048) == 1
    assert plan(100 * 737_280, max_model_len=int(length[1])).num_blocks == 100
    with pytest.raises(KVMemoryError):
        plan((int(memory[1]) - 1) * MIB)
    with pytest.raises(KVMemoryError):
        plan(100 * 737_280, max_model_len=int(length[1]) + 1)


def test_plan_does_not_suggest_memory_that_is_not_free():
    with pytest.raises(KVMemoryError) as error:
        plan(10 * 737_280, free_bytes=50 * MIB)
    assert "--kv-cache-memory" not in error.value.fix
    assert "--max-model-len to at most 160" in error.value.fix


def test_plan_names_the_number_of_blocks_when_that_is_what_was_set():
    def blocks(num_blocks: int) -> KVPlan:
        return plan_kv_memory(
            num_blocks * 737_280,
            bytes_per_block=737_280,
            block_size=16,
            max_model_len=2048,
            is_count=True,
        )

    with pytest.raises(KVMemoryError) as error:
        blocks(127)
    assert error.value.fix == (
        "Set --num-blocks-override to at least 128 or --max-model-len to at most 2032"
    )
    assert blocks(128).num_requests_of(2048) == 1


def test_plan_suggests_to_free_memory_when_nothing_else_helps():
    with pytest.raises(KVMemoryError) as error:
        plan(0, free_bytes=0)
    assert error.value.fix == "Free at least 90 MiB of memory or choose a smaller model"


def test_plan_refuses_when_more_is_asked_for_than_is_free():
    with pytest.raises(KVMemoryError, match=r"200 MiB \(209715200 bytes\) are free") as error:
        plan(2**30, free_bytes=200 * MIB)
    assert "--kv-cache-memory to at most 200MiB" in error.value.fix


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (90 * MIB, "90 MiB"),
        (3 * 2**29, "1.5 GiB"),
        (2**42, "4 TiB"),
        (1023 * MIB, "1023 MiB"),
    ],
)
def test_format_bytes_uses_the_unit_that_reads_best(num_bytes, text):
    assert format_bytes(num_bytes) == text
