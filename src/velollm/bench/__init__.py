"""Timed requests, fair comparison."""
