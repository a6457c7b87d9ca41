"""From a Hugging Face config to a graph: shared blocks, one short file per family, one registry.

Also the writers of new expert folders: quantised, merged, a delta, or converted from other quantisation formats.
Knows nothing about devices or prompts.
"""
