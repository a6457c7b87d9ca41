"""Layers with branches (mixtures of experts inside a model): ops, what is legal, cost, reference.

Knows nothing about devices, or which families of models have these ops.
"""
