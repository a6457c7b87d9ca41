"""Per-layer inputs and scalars: ops and legality.

Knows nothing about devices, or which families of models have these ops.
"""
