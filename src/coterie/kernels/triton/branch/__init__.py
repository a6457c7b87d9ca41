"""Layers with branches (mixtures of experts inside a model).

Knows nothing about which families of models have these ops.
"""
