"""Questions about machines: workloads, simulation, placement, the paper's tables.

Knows nothing about servers.
"""
