"""Reproduction of the paper's tables and figures: published values next to those of our models, exhibit by exhibit.

Knows nothing about the command line.
"""
