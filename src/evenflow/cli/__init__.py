"""The `evenflow` command, one module per verb."""
