"""Recurrences (gated delta nets, selective state spaces) and what stands around them.

Knows nothing about which families of models have these ops.
"""
