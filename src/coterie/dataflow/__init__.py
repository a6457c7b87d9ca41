"""Maps a graph to a spatial machine: sections, placement, tile streams, functional simulation, memory planning.

Knows nothing about devices, models or requests.
"""
