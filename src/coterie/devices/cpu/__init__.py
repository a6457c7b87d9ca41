"""The CPU device: experts in reserved memory, programs on a team of native threads.

Knows nothing about other devices.
"""
