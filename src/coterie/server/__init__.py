"""The OpenAI-compatible HTTP face.

Knows nothing about kernels or memory.
"""
