"""A router and its experts, as declared in one TOML file or a folder.

Knows nothing about devices, memory or requests in flight.
"""
