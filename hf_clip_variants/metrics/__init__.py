"""Measures, one module a task."""
