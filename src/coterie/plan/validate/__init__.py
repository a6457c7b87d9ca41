"""Validation: errors of modelled against measured times, on public data sets and on this machine's own results.

Knows nothing about how they are printed.
"""
