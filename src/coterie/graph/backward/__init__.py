"""Training graphs: their ops, what is legal, the reference, and the rules that build them.

Knows nothing about devices, or which families of models have these ops.
"""
