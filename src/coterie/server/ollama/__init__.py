"""Ollama's own API, next to OpenAI's and Anthropic's, over the same queries and answers.

Knows nothing about how an answer is computed.
"""
