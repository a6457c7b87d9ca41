"""Bytes on disk: safetensors ranges, the layout of an expert in memory, Hugging Face config, tokenizer, chat template.

Knows nothing about graphs, devices or what the bytes are used for.
"""
