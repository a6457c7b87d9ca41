"""Gated delta nets (linear attention): ops, legality, cost, reference.

Knows nothing about devices, or which families of models have these ops.
"""
