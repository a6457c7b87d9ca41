"""Attention over pages of keys and values, and what writes these pages.

Knows nothing about which families of models have these ops.
"""
