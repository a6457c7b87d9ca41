"""The CPU device: experts in preallocated memory, programs executed by a team of native threads.

Knows nothing about other devices.
"""
