"""Benchmarks: each runs as `python -m benchmarks.<name>` and compares with a named peer in the same run."""
