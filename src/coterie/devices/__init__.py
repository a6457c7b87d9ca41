"""Concrete devices behind the seam: cpu, cuda, modelled. None imports another; code common to real ones is in `real`.

Knows nothing about models, routers or requests.
"""
