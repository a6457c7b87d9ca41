"""GPU kernels in Triton: one op or fused region per file, under the names of csrc/kernels/.

Common to all: activations are float32, a row per token; weights have their file's type, or are packed
(product/packed.py). Few tokens are multiplied in float32 on CUDA cores. For more, activations are rounded to the
weight's type (bfloat16 if it is packed) for tensor cores. Sums are float32, the sampler's float64. Words used
throughout:

    row       an encoded instruction: int64 words, with addresses that the kernel reads on the GPU (rows.py)
    program   a Triton program, that is a thread block
    staged    rounded for tensor cores, in scratch (product/dots.py)
    share     adjacent rows of activations that use the same weight, for example an adapter's (product/linear_each.py)
    branch    an expert of a mixture-of-experts layer (branch/)
    alone     of a token: no other token of its sequence is in the step (attention/)
    walk      one persistent launch that runs all rows of several steps (persistent.py)

Importing these modules needs the extra `cuda`; in Coterie only the CUDA device imports them.
Knows nothing about graphs, experts or callers.
"""
