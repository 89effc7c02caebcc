"""The endpoints, one module per family: each has `routes` that the app includes."""
