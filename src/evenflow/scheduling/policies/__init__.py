"""One module per policy."""
