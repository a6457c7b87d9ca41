"""Latent attention, whose keys and values all heads share: ops, what is legal, cost, reference.

Knows nothing about devices, or which families of models have these ops.
"""
