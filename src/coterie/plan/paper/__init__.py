"""The paper's tables and figures, again: what was published beside what our models say, exhibit by exhibit.

Knows nothing about the command line.
"""
