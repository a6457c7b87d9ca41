"""Selective state spaces (Mamba-2): ops, legality, cost, reference.

Knows nothing about devices, or which families of models have these ops.
"""
