"""How far modelled times are from measured ones, on every public data set and on this machine's own results.

Knows nothing about how they are printed.
"""
