"""Fine-tunes stored relative to a base: LoRA adapters and packed differences (deltas); and merging either into a model.

Knows nothing about how they are run.
"""
