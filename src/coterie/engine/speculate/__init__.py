"""Speculative decoding: tokens drafted by a grammar, by prompt lookup, by a prediction, or by a draft expert.

Knows nothing about devices, or who answers what.
"""
