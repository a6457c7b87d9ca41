"""A graph as PyTorch launches it op by op: its ops, what is legal, the reference, and the rewriting.

Knows nothing about devices, or which families of models have these ops.
"""
