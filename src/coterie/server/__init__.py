"""The HTTP server: OpenAI's, Anthropic's and Ollama's APIs, the web page, and monitoring.

Knows nothing about kernels or memory.
"""
