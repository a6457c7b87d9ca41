"""Readers of other quantisation formats: where matrices lie in the files, and how to decode them.

Knows nothing about how the result is used (repack.py).
"""
