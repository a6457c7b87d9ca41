"""Selective state spaces (Mamba-2): ops, what is legal, cost, reference.

Knows nothing about devices, or which families of models have these ops.
"""
