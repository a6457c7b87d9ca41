"""Speed on models that people have, beside llama.cpp on the very files: what stored results do not say in their rows.

Knows nothing about stored results.
"""

RELEASED = """\
## Released models

Experts as `coterie import` wrote them, beside llama.cpp (llama-cpp-python 0.3.36, compiled on that machine: AVX-512,
VNNI, its own repacking) on the GGUF file that each came from, by two threads on a quiet machine: rows with a
checkpoint's name in the tables of [the EPYC of Zen 5](#amd-epyc-2-cpus-avx512-zen-5). Activations have 16 bits in ours,
15 where weights have 6 and 12 where they have 4, and 8 in theirs.

| file | decode, context 64 | prompt of 512 tokens | memory in that prompt, ours : theirs |
|---|---|---|---|
| SmolLM2-135M-Instruct, Q4_1 | 2.34 x | 5.73 x | 119 : 110 MB |
| Gemma 3 270M, Q4_K_M | 1.65 x | 2.81 x | 269 : 265 MB |
| Qwen2.5-Coder-0.5B-Instruct, Q4_K_M | 1.52 x | 2.63 x | 579 : 521 MB |
| Qwen2.5-Coder-1.5B-Instruct, Q4_K_M | 1.02 x | 1.04 x | 1282 : 1176 MB |

Ratios are their time over ours, each at its best setting; medians of rounds in turns. A token waits for memory, whose
rate others on that host change: here ours read 35 to 38 GB/s. In a run in which it read 47 and 51, Gemma and the 0.5B
were at 2.26 and 2.09 x. The 1.5B had 1.09 x in a second run, and three runs of its prompts 0.93, 1.04 and 1.15 x; with
`--activations int8` these were at 1.29 x, when Q6_K became int8 and not int6. Shares of the multiply-add rate above 1
are no mistake: that rate is of float32, and whole numbers are multiplied faster.

Switches stand in those tables too: a cold first token of SmolLM2 comes 4.6 times as soon as llama.cpp's, of Gemma 3
270M 6.9 times; from files that the system keeps in memory 16 and 59 times. In theirs is what an open makes, a
vocabulary of 49 or 262 thousand among it, which ours reads once, at start.

Measure your own: `coterie bench decode --checkpoint FOLDER --gguf FILE`, and so with `prefill` and `switch`.

## Beside OpenVINO

`pip install -e '.[openvino]'`, then `--peer openvino` with random experts, or with `--gguf` (add `--peer llama.cpp` for
both). It runs the graph that OpenVINO GenAI makes of a GGUF file, weights rounded by NNCF, with its own defaults:
activations of 8 bits beside packed weights, of bfloat16 beside others. Its reader took F16, Q4_1 with Q8_0, and Q4_K
with Q6_K here, and refused files with Q5_0.

Alone on [the EPYC of Zen 5](#amd-epyc-2-cpus-avx512-zen-5), theirs over ours: a prompt of 512 tokens 1.01 x (135m,
bf16; 0.94 before attention multiplied bfloat16 too, 0.85 before rows of weights went through a panel, 0.53 before ours
were products of bfloat16) and **0.83 x** (SmolLM2, Q4_1), a token of SmolLM2 3.36 x.

**Prompts with packed weights are where we lose.** On the same EPYC, OpenVINO 2026.4.1, NNCF 3.4.0; a dozen other
processes wanted the two cores, so the table is of *processor time*, theirs over ours, the least of two to six rounds
in turns:

| weights; our activations | decode, context 64 | prompt of 128 | prompt of 512 |
|---|---|---|---|
| 135m, bf16; float32 | 1.43 x | **0.55 x** | **0.55 x** |
| 135m, int8; 16 bits | 2.09 x | **0.70 x** | **0.71 x** |
| 135m, int8; 8 bits | 1.80 x | 1.00 x | **0.96 x** |
| 135m, int4, theirs in groups of 64 or 128; 12 bits | 3.08 x | **0.93 x** | **0.89 x** |
| 135m, int4, theirs in groups of 32 as ours; 12 bits | 3.03 x | **0.80 x** | not measured |
| SmolLM2-135M-Instruct, Q4_1; 12 bits | 3.10 x | **0.90 x** | **0.86 x** |
| SmolLM2-135M-Instruct, Q4_1; 8 bits | 3.06 x | 1.09 x | 1.05 x |
| Qwen2.5-Coder-1.5B-Instruct, Q4_K_M; 12 bits | 1.96 x | **0.88 x** | not measured |
| Qwen2.5-Coder-1.5B-Instruct, Q4_K_M; 8 bits | 1.97 x | 1.07 x | not measured |

Beside bf16 weights ours multiplied in float32 in the first row, at the rate that those instructions have; theirs rounds
activations to bfloat16, and AVX512-BF16 multiplies those twice as fast. `--activations bf16`, younger than that row and
the default there now, does so too.
Beside packed weights ours keeps 16 or 12 bits of activations, which take more products of bytes than their 8;
`--activations int8` is like for like. A cold first token of SmolLM2 (128 tokens) took OpenVINO 9.3 times as long, three
noisy rounds: what was compiled is opened in 0.2 s of processor time, and the first step after it needs 0.4 more.

By AVX2 alone (no AVX-512, no AVX-VNNI) packed prompts do not lose: 512 tokens of 135m took OpenVINO 1.39 (int4, groups
of 32) and 1.33 times (int8) our processor time, tokens 2.81 and 2.49 times, before int8 had a panel there.
"""
