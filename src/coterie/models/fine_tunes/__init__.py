"""Fine-tunes that are served as a base and what differs: LoRA adapters and packed differences, and both merged.

Knows nothing about how they are run.
"""
