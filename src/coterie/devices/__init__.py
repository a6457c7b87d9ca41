"""Concrete devices behind the seam: cpu, cuda and modelled. They do not know each other; real ones share `real`.

Knows nothing about models, routers or requests.
"""
