"""`CpuOps` over weights as a file stores them, alone and beside fp32 ones."""

from __future__ import annotations

import pytest
import torch

from evenflow.core.errors import IntegrityError
from evenflow.core.gguf_file import GGML_TYPES
from evenflow.execution.kernels.cpu_ops import CpuOps
from evenflow.execution.kernels.torch_ops import TorchOps
from evenflow.execution.ops import QuantisedRows, Weight
from evenflow.models.weights.rounding import round_rows
from support.kernel_sets import NATIVE_SETS, kernel_set

Q4_1, Q8_0 = GGML_TYPES[3], GGML_TYPES[8]
DIM = 96


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weight(num_rows: int, storage: str, seed: int) -> Weight:
    values = random(num_rows, DIM, seed=seed)
    if storage == "fp32":
        return values
    kind = {"Q4_1": Q4_1, "Q8_0": Q8_0}[storage]
    return QuantisedRows(kind, round_rows(values, kind), DIM)


def weights(*storages: str) -> list[Weight]:
    return [weight(40 - 9 * i, storage, seed=i) for i, storage in enumerate(storages)]


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.fixture(params=NATIVE_SETS)
def ops(request: pytest.FixtureRequest) -> CpuOps:
    return CpuOps(kernel_set(request.param))


@pytest.mark.parametrize("with_bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize(
    "storages",
    [("Q4_1",), ("Q8_0", "Q4_1", "Q8_0"), ("Q4_1", "fp32", "Q8_0"), ("fp32", "fp32", "Q4_1")],
    ids="-".join,
)
def test_linear_computes_with_every_mixture_of_forms(
    ops: CpuOps, storages: tuple[str, ...], with_bias: bool
) -> None:
    mixture = weights(*storages)
    num_outputs = sum(40 - 9 * i for i in range(len(storages)))
    bias = random(num_outputs, seed=8) if with_bias else None
    x = random(5, DIM, seed=9)
    found, expected = ops.linear(mixture, bias)(x), TorchOps().linear(mixture, bias)(x)
    assert found.shape == (5, num_outputs)
    assert relative_error(found, expected) < 0.01  # activations are rounded to 1/254 of the largest
    together = ops.linear(mixture, bias)(random(70, DIM, seed=9))
    assert torch.equal(together[:5], found)


@pytest.mark.parametrize("storage", ["Q4_1", "Q8_0"])
def test_embedding_gives_rows_of_a_stored_table(ops: CpuOps, storage: str) -> None:
    table = weight(70, storage, seed=1)
    ids = torch.tensor([69, 0, 16, 0, 33])
    embed = ops.embedding(table)
    rows = embed(ids)
    torch.testing.assert_close(rows, TorchOps().embedding(table)(ids), rtol=1e-6, atol=1e-6)
    before = rows.clone()
    rows.mul_(3)  # a model may scale them in place
    assert torch.equal(embed(ids), before)


def test_vocabulary_packs_a_stored_table_once(ops: CpuOps, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    team_run = ops._workspace.team.run
    monkeypatch.setattr(
        ops._workspace.team, "run", lambda k, *a, **b: (runs.append(k), team_run(k, *a, **b))
    )
    table = weight(70, "Q8_0", seed=1)
    embed, logits = ops.vocabulary(table)
    ids, x = torch.tensor([3, 68]), random(4, DIM, seed=2)
    assert torch.equal(embed(ids), ops.embedding(table)(ids))
    assert torch.equal(logits(x), ops.linear([table])(x))
    assert runs.count(ops._workspace.kernels.pack) == 3


@pytest.mark.parametrize("make", [TorchOps, CpuOps])
def test_vocabulary_of_an_fp32_table_is_its_embedding_and_its_linear(
    make: type[CpuOps | TorchOps],
) -> None:
    table = random(70, DIM)
    embed, logits = make().vocabulary(table)
    ids, x = torch.tensor([3, 68]), random(4, DIM, seed=2)
    assert torch.equal(embed(ids), table[ids])
    torch.testing.assert_close(logits(x), x @ table.T)


def test_kernels_that_take_no_stored_weights_say_so() -> None:
    with pytest.raises(IntegrityError, match="Stored weights"):
        CpuOps(kernel_set("numba")).linear(weights("Q8_0"))
