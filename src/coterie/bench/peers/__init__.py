"""Other engines that are given the same work, each behind one small protocol.

Knows nothing about what is compared.
"""
