"""The kinds of router, one file each.

Knows nothing about composition files.
"""
