"""Code common to the real devices: host memory, direct file I/O, worker lanes, lowering of regions to instructions.

Knows nothing about how kernels are implemented.
"""
