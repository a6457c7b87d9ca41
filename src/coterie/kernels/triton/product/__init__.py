"""Matrix products with weights, packed or not, alone or with what is fused into them.

Knows nothing about which model families have these ops.
"""
