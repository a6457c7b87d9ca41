"""Benchmarks, each reported with machine, commit and workload.

Knows nothing about the inside of a server: servers are measured over HTTP.
"""
