"""The HTTP face: OpenAI's API, Anthropic's messages, the page, and what can be watched.

Knows nothing about kernels or memory.
"""
