"""Measures what steps of an engine take, and makes a cost profile of it."""
