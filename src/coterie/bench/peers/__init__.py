"""Other engines that the same work is given to, each behind one small protocol.

Knows nothing about what is compared.
"""
