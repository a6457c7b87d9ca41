"""What a machine is: units, tiers, links, launch costs; frozen, each number with its unit and source.

Knows nothing about graphs or how time is computed from these numbers.
"""
