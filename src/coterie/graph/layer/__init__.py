"""What each layer has by itself: ops and what is legal.

Knows nothing about devices, or which families of models have these ops.
"""
