"""Capacity planning: workloads, simulation, sizing, placement, reproduction of the paper's tables, validation.

Knows nothing about servers.
"""
