"""Products with weights, packed or not, alone or with what is fused into them.

Knows nothing about which families of models have these ops.
"""
