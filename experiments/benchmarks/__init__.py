"""Benchmarks: each prints ratios against a baseline of the same run, and writes JSON and a picture."""
