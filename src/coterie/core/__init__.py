"""Types and helpers that every layer uses: errors, units, data types, shapes, traces.

Knows nothing about models, devices or files.
"""
