"""Attention over KV pages, and the kernels that write these pages.

Knows nothing about which model families have these ops.
"""
