"""Speed on models that people have, beside llama.cpp on the very files: measured by hand, so written down here.

Knows nothing about stored results.
"""

RELEASED = """\
## Released models

Experts as `coterie import` wrote them, beside llama.cpp (llama-cpp-python 0.3.36, compiled on that machine: AVX-512,
VNNI, its own repacking) on the GGUF file that each came from. Two cores of an EPYC (Zen 5, AVX-512 with VNNI), shared
with much other work, so these are **processor times of one thread**, the least of 2 to 6 turns A B A B, and
ratios (their time over ours, at their best setting); commit 1bb0ed0. Activations have 16 bits in ours, 8 in theirs.
Two threads on a quiet machine, contexts of 1,024 and prompts of 2,048 were not measured.

| file | decode, context 64 | ratio | prefill of 128 | ratio (before 1bb0ed0) | memory, ours : theirs |
|---|---|---|---|---|---|
| SmolLM2-135M-Instruct, Q4_1 | 3.6 ms a token | 1.87 x | 136 ms | 3.61 x (2.27) | 103 : 103 MB |
| Gemma 3 270M, Q4_K_M | 8.9 ms | 1.22 x | 119 ms | 1.85 x (1.21) | 271 : 254 MB |
| Qwen2.5-Coder-0.5B-Instruct, Q4_K_M | 15.9 ms | 1.20 x | 353 ms | 1.96 x (1.14) | 632 : 498 MB |
| Qwen2.5-Coder-1.5B-Instruct, Q4_K_M | 36.4 ms | 1.05 x | 1392 ms | **0.60 x** (0.36) | 1302 : 1131 MB |

Switches, whole requests of 64 tokens with two threads under that load, five rounds in turns: a cold first token of
Gemma 3 270M after 119 ms where llama.cpp takes 2.18 s (15 x), of the 0.5B after 317 ms where it takes 1.65 s (5.6 x).
In theirs is what an open makes, a vocabulary of 262 or 152 thousand among it, which ours reads once, at start.

Measure your own: `coterie bench decode --checkpoint FOLDER --gguf FILE`, and so with `prefill` and `switch`.
"""
