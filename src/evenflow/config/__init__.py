"""Settings: one module per area, and a loader that layers default < file < environment < flag.

Knows: every setting, its unit, its limits and where its value came from.
Does not know: what the settings do.

Invariants:
    Nothing outside this room reads environment variables.
    An unknown key is an error, wherever it comes from.
"""
