"""Simulated benchmarks: the same figures as a measured run, for servers that need not exist.

Knows: what a simulated run is made of (load, variant of the server, figures), reports, timelines.
Does not know: the engine or its costs (`simulation`), flags and terminals (`cli`).

Invariants:
    Figures have the keys of `evenflow bench serve` and come from the function that makes those.
    Variants of one command see the same requests; a load can be had any number of times.
    A report is one file that asks the network for nothing, and text from traces is never markup.
"""
