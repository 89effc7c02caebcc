"""HTTP: OpenAI's and Anthropic's APIs, tenants at the door, metrics, the dashboard.

Knows: requests and responses, keys, who may do what, what is shown to whom.
Does not know: how requests are scheduled, torch, the model's weights.

Invariants:
    No input, however malformed, gets anything but an answer of 4xx; one request's failure never
    reaches another.
    Every request that was accepted is closed in the books exactly once: admission, metrics and
    explanations agree.
    Keys are compared in constant time and never logged; prompts are logged only when asked for.
"""
