"""Descriptions of machines: units, tiers, links, launch costs; immutable, each number with its unit and source.

Knows nothing about graphs or how time is computed from these numbers.
"""
