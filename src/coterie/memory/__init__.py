"""The expert cache: tiers, slabs, transfers and eviction. It decides where each expert's weights are.

Knows nothing about models, routers or what a device really is.
"""
