"""Drivers of pattern generators."""
