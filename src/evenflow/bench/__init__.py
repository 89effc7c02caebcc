"""The load tool: runs a load against any server that speaks OpenAI's API, and compares results.

Knows: settings of a run, definitions of its figures, result files, tables and plots.
Does not know: how requests are made and sent (`workloads`), flags (`cli`).

Invariants:
    Results have the keys of `vllm bench serve`, ours beside them and never in their place.
    Nothing secret gets into a result: no API key, no header.
    A peer is measured by the same client, and the client's own cost is in every result.
    Only `run` needs the HTTP client, so results can be read and compared without it.
"""
