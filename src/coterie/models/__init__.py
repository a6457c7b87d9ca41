"""From a Hugging Face config to a graph: shared blocks, one short file per family, one registry.

Knows nothing about devices or weights.
"""
