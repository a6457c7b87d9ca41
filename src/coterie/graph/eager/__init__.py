"""A graph as PyTorch eager launches it, kernel by kernel: ops, legality, reference, and the rewriting.

Knows nothing about devices, or which families of models have these ops.
"""
