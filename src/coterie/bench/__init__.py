"""Measurements, each with machine, commit and workload.

Knows nothing about servers.
"""
