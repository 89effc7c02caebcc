from evenflow.execution.costs import StepShape, shape_of
from support.step_shapes import plan_of


def test_shape_of_counts_one_token_after_the_prompt_as_a_decode() -> None:
    shape = shape_of(plan_of((8, 8, 1), (3, 20, 1)))
    assert shape == StepShape((), 2, 9 + 21)


def test_shape_of_counts_the_last_prompt_token_as_a_chunk() -> None:
    assert shape_of(plan_of((8, 7, 1))) == StepShape(((1, 7),), 0, 0)


def test_shape_of_counts_a_recomputation_as_a_chunk() -> None:
    assert shape_of(plan_of((8, 0, 12))) == StepShape(((12, 0),), 0, 0)


def test_shape_of_keeps_the_chunks_of_a_mixed_step() -> None:
    shape = shape_of(plan_of((8, 9, 1), (100, 32, 16), (5, 0, 5)))
    assert shape == StepShape(((16, 32), (5, 0)), 1, 10)
    assert (shape.num_tokens, shape.num_requests, shape.num_context_tokens) == (22, 3, 63)


def test_shape_of_an_empty_plan_is_empty() -> None:
    assert shape_of(plan_of()) == StepShape()
