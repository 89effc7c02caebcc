"""The endpoints, one module per family."""

from evenflow.server.routes import admin, batches, embeddings, insight, text, tokens

ALL = (
    text.routes,
    embeddings.routes,
    tokens.routes,
    batches.routes,
    insight.routes,
    admin.routes,
)
