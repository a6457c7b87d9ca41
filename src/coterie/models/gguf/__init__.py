"""GGUF files, llama.cpp's, as ordinary expert folders: what a file says, its weights, the folder written.

Knows nothing about how a model is run.
"""
