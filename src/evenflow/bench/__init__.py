"""The load tool: runs a load against any server that speaks OpenAI's API, and compares results.

Knows: settings of a run, definitions of its figures, result files, tables and plots.
Does not know: how requests are made and sent (`workloads`), flags (`cli`).

What measuring costs: 27 us of CPU for each token that comes in a chunk of its own, and 0.4 ms for
each request (1,000 streams at once at 9,000 tokens/s from a scripted server, two shared cores,
Python 3.11). One process therefore follows some 25,000 tokens/s; every result says what it took, in
`client_cpu_us_per_token`, and how late a request was sent at worst, in `max_send_lag_ms`.

Invariants:
    Results have the keys of `vllm bench serve`, ours beside them and never in their place.
    Nothing secret gets into a result: no API key, no header.
    A peer is measured by the same client, and the client's own cost is in every result.
    Only `run` needs the HTTP client, so results can be read and compared without it.
"""
