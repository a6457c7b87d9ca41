"""Latent attention: its products, its pages, its attention.

Knows nothing about which families of models have these ops.
"""
