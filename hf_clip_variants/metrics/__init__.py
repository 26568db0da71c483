"""Metrics, one module per task."""
