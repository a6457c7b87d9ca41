"""Requests in, tokens out: decide (scheduler), compute (runner), account (cache, KV pool).

Knows nothing about concrete devices, clocks or threads.
"""
