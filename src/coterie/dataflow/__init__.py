"""A graph on a spatial machine: sections, mapping, tile streams, their functional truth, memory planning.

Knows nothing about devices, models or requests.
"""
