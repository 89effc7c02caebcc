from __future__ import annotations

import math

import pytest

from evenflow.core.errors import InvalidRequestError
from evenflow.core.slo import Slo


def test_attained_compares_each_objective_with_what_was_measured() -> None:
    slo = Slo(ttft_s=0.5, tpot_s=0.05)
    assert slo.attained(0.5, 0.05) == {"ttft": True, "tpot": True}
    assert slo.attained(0.51, 0.04) == {"ttft": False, "tpot": True}
    assert slo.attained(0.4, 0.06) == {"ttft": True, "tpot": False}


def test_attained_leaves_out_objectives_that_were_not_set() -> None:
    assert Slo().attained(1.0, 1.0) == {}
    assert Slo(ttft_s=2.0).attained(1.0, 1.0) == {"ttft": True}
    assert Slo(tpot_s=2.0).attained(1.0, 1.0) == {"tpot": True}


def test_attained_counts_a_first_token_that_never_came_as_late() -> None:
    assert Slo(ttft_s=9.0, tpot_s=9.0).attained(None, None) == {"ttft": False}


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["ttft_s", "tpot_s"])
def test_slo_refuses_what_is_no_positive_time(name: str, value: float) -> None:
    with pytest.raises(InvalidRequestError, match=f"{name} must be a positive") as caught:
        Slo(**{name: value})
    assert caught.value.param == name
