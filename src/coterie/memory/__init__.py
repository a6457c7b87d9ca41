"""Tiers, slabs, eviction, transfers and the expert cache: which expert's bytes are where.

Knows nothing about models, routers or what a device really is.
"""
