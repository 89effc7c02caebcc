"""How long a step takes: what a simulator charges, and what a policy weighs.

Knows: the shape of a step, formulas and tables over it, where their figures come from.
Does not know: tensors, tokens, which request deserves to run, clocks.

Invariants:
    A cost depends on the shape alone: the same step takes the same time.
    Every figure that is shipped or written names its source.
"""

from evenflow.execution.costs.closed_form import (
    ClosedFormCosts,
    DecodeCoefficients,
    PrefillCoefficients,
)
from evenflow.execution.costs.cost_model import CostModel
from evenflow.execution.costs.measured import MeasuredCosts, MeasuredStep
from evenflow.execution.costs.profile import CostProfile, load_profile
from evenflow.execution.costs.shape import StepShape, shape_of

__all__ = [
    "ClosedFormCosts",
    "CostModel",
    "CostProfile",
    "DecodeCoefficients",
    "MeasuredCosts",
    "MeasuredStep",
    "PrefillCoefficients",
    "StepShape",
    "load_profile",
    "shape_of",
]
