"""Coterie serves a composition of experts: one endpoint in front of many whole language models, on one machine.

Knows nothing about how: it only names the public face.
"""

__version__ = "0.1.0"
