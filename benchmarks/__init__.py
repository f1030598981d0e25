"""Ours against a named peer, timed alternately in one process: `python -m benchmarks [name ...]`."""
