"""Measurements, each with machine, commit and workload.

Knows nothing about what is inside a server: those that are measured are asked over HTTP.
"""
