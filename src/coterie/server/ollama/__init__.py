"""Ollama's own API, beside OpenAI's and Anthropic's, over the same queries and answers.

Knows nothing about how an answer is computed.
"""
