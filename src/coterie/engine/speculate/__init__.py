"""Tokens guessed ahead: by a form, by what came before, by a prediction, or by a small expert.

Knows nothing about devices, or who answers what.
"""
