"""Benchmarks: each folder is one command, ``python -m benchmarks.<name>`` from the repository root."""
