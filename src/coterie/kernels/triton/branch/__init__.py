"""Mixture-of-experts layers inside a model; its experts are called branches here.

Knows nothing about which model families have these ops.
"""
