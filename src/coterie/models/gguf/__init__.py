"""Import of GGUF files (llama.cpp's format) into ordinary expert folders: metadata, weights, and the folder written.

Knows nothing about how a model is run.
"""
