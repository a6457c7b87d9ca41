"""What the real devices share: host memory, files by direct I/O, lanes with threads, instructions from regions.

Knows nothing about which kernels there are.
"""
