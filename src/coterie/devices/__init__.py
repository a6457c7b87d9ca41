"""Concrete devices behind the seam: cpu and modelled. They do not know each other.

Knows nothing about models, routers or requests.
"""
