"""Training graphs: their ops, legality, reference, and the rules that build them.

Knows nothing about devices, or which families of models have these ops.
"""
