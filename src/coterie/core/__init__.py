"""Words shared by every layer: errors, units, data types, shapes, traces.

Knows nothing about models, devices or files.
"""
