"""Bytes on disk: safetensors ranges, the layout of an expert in memory, Hugging Face config, tokenizer, chat template.

Knows nothing about graphs, devices or who wants the bytes.
"""
