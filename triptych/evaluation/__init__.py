"""Evaluators by the protocols of the field, and their metrics."""
