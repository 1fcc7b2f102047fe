"""Benchmarks: each folder is a command, ``python -m benchmarks.<name>`` from the root."""
