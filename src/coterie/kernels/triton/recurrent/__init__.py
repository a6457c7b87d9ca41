"""Recurrences (gated delta nets, selective state spaces) and the small kernels around them.

Knows nothing about which model families have these ops.
"""
