"""From a Hugging Face config to a graph: shared blocks, one short file per family, one registry.

And folders that are written from others: packed, merged, a difference, or from what others packed.
Knows nothing about devices or prompts.
"""
