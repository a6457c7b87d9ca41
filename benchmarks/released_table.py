"""Speed on models that people have, beside llama.cpp on the very files: what stored results do not say in their rows.

Knows nothing about stored results.
"""

RELEASED = """\
## Released models

Experts as `coterie import` wrote them, beside llama.cpp (llama-cpp-python 0.3.36, compiled on that machine: AVX-512,
VNNI, its own repacking) on the GGUF file that each came from: two threads on a quiet machine are in the table of the
EPYC with AVX-512 above that has a checkpoint's name in its rows. Activations have 16 bits in
ours, 12 where weights have 4, and 8 in theirs.

| file | decode, context 64 | prompt of 512 tokens | memory, ours : theirs |
|---|---|---|---|
| SmolLM2-135M-Instruct, Q4_1 | 2.49 x | 5.68 x | 103 : 103 MB |
| Gemma 3 270M, Q4_K_M | 1.46 x | 2.66 x | 271 : 254 MB |
| Qwen2.5-Coder-0.5B-Instruct, Q4_K_M | 1.23 x | 2.63 x | 632 : 498 MB |
| Qwen2.5-Coder-1.5B-Instruct, Q4_K_M | **0.99 x** | 1.04 x | 1302 : 1131 MB |

Ratios are their time over ours, each at its best setting; medians of rounds in turns. A token waits for memory, whose
rate others on that machine change by a third: a second run had 2.54, 1.61, 1.31 and 0.93 x. With
`--activations int8` prompts of the last row are at 1.29 x. Shares of the multiply-add rate above 1 are no mistake:
that rate is of float32, and whole numbers are multiplied faster.

Switches stand in that table too: a cold first token of SmolLM2 comes 4.6 times as soon as llama.cpp's, of Gemma 3 270M
6.9 times; from files that the system keeps in memory 16 and 59 times. In theirs is what an open makes, a vocabulary of
49 or 262 thousand among it, which ours reads once, at start.

Measure your own: `coterie bench decode --checkpoint FOLDER --gguf FILE`, and so with `prefill` and `switch`.

**OpenVINO** is a peer of these benches too: `pip install -e '.[openvino]'`, then `--peer openvino`, with random experts
or with `--gguf` (add `--peer llama.cpp` for both). It runs the graph that OpenVINO GenAI makes of a GGUF file, weights
rounded by NNCF, with its own defaults: activations of 8 bits beside packed weights, of bfloat16 beside others. Its
reader knows F16, Q8_0, Q4_0, Q4_1, Q4_K and Q6_K of Llama, Qwen 2 and Qwen 3, and no other files.
"""
