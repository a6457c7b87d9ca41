"""Checkpoints that others quantised: where their matrices lie in the files, and what they are worth.

Knows nothing about what becomes of them (repack.py).
"""
