"""Gated delta nets (linear attention): ops, what is legal, cost, reference.

Knows nothing about devices, or which families of models have these ops.
"""
