"""Drivers of time taggers."""
