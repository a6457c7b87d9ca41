"""Multi-head latent attention (MLA): its projections, its pages, its attention.

Knows nothing about which model families have these ops.
"""
