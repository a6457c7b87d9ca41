"""A graph on a spatial machine: sections, mapping, placement, tile streams.

Knows nothing about experts or requests.
"""
