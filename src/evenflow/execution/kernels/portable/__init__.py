"""CPU kernels that need no compiler at hand: numba makes machine code of them when first used.

Knows: vectors, argument words.
Does not know: tensors, threads, models.
"""
