"""The endpoints, one module per family."""

from evenflow.server.routes import (
    admin,
    batches,
    embeddings,
    insight,
    messages,
    requests,
    responses,
    text,
    tokens,
)

ALL = (
    text.routes,
    responses.routes,
    messages.routes,
    embeddings.routes,
    tokens.routes,
    batches.routes,
    requests.routes,
    insight.routes,
    admin.routes,
)
