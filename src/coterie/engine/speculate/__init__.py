"""Speculative decoding: tokens drafted by a grammar, prompt lookup, a supplied prediction, or a draft expert.

Knows nothing about devices, or which expert serves a request.
"""
