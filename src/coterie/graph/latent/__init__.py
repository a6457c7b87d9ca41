"""Latent attention, whose cached rows are shared by all heads: ops, legality, cost, reference.

Knows nothing about devices, or which families of models have these ops.
"""
