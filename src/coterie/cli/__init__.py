"""The command line: one function per command.

Knows nothing about kernels or memory.
"""
