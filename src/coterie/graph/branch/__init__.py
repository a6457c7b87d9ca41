"""Layers with branches (the experts of a mixture inside one model): ops, legality, cost, reference.

Knows nothing about devices, or which families of models have these ops.
"""
