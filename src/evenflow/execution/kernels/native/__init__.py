"""CPU kernels in C++: compiled once for each instruction set, chosen when loaded.

Knows: compilers, shared libraries, instruction sets.
Does not know: tensors. A kernel takes the words of the numba kernel of the same name in `portable`.
"""
