"""The text of docs/speed.md on released models, compared with llama.cpp on the same files, and with OpenVINO.

Knows nothing about stored results.
"""

RELEASED = """\
## Released models

Experts as `coterie import` wrote them, compared with llama.cpp (llama-cpp-python 0.3.36, compiled on that machine:
AVX-512, VNNI, its own repacking) on the original GGUF files, with two threads on a quiet machine: the rows with a
checkpoint's name in the tables of [the Zen 5 EPYC](#amd-epyc-2-cpus-avx512-zen-5). Our activations have 16 bits, 15
with 6-bit and 12 with 4-bit weights; llama.cpp's have 8.

| file | decode, context 64 | prompt of 512 tokens | memory in that prompt, ours : theirs |
|---|---|---|---|
| SmolLM2-135M-Instruct, Q4_1 | 2.34 x | 5.73 x | 119 : 110 MB |
| Gemma 3 270M, Q4_K_M | 1.65 x | 2.81 x | 269 : 265 MB |
| Qwen2.5-Coder-0.5B-Instruct, Q4_K_M | 1.52 x | 2.63 x | 579 : 521 MB |
| Qwen2.5-Coder-1.5B-Instruct, Q4_K_M | 1.02 x | 1.04 x | 1282 : 1176 MB |

Ratios are llama.cpp's time over ours, each at its best setting; medians of alternating rounds. Decode is limited by
memory, whose rate depends on other users of that host: in these runs ours read 35 to 38 GB/s. In a run in which it read
47 and 51, Gemma and the 0.5B were at 2.26 and 2.09 x. The 1.5B had 1.09 x in a second run, and three runs of its
prompts 0.93, 1.04 and 1.15 x; with `--activations int8` these were at 1.29 x, when Q6_K became int8 and not int6.
Shares of the multiply-add rate above 1 are not a mistake: the rate is that of float32, and integers multiply faster.

Those tables include switches: a cold first token of SmolLM2 comes 4.6 times as fast as llama.cpp's, of Gemma 3 270M
6.9 times; from files in the page cache 16 and 59 times. Llama.cpp's time includes everything that opening a model
involves, such as reading a vocabulary of 49 or 262 thousand tokens, which ours does once, at start.

Measure your own: `coterie bench decode --checkpoint FOLDER --gguf FILE`, and likewise `prefill` and `switch`.

## Beside OpenVINO

`pip install -e '.[openvino]'`, then `--peer openvino` with random experts, or with `--gguf` (add `--peer llama.cpp` for
both). It runs the graph that OpenVINO GenAI builds from a GGUF file, with weights quantised by NNCF and OpenVINO's
defaults: 8-bit activations with quantised weights, bfloat16 with others. Its reader accepted F16, Q4_1 with Q8_0, and
Q4_K with Q6_K here, and refused files with Q5_0.

On [the Zen 5 EPYC](#amd-epyc-2-cpus-avx512-zen-5) without other load, OpenVINO's time over ours: a prompt of 512 tokens
1.01 x (135m, bf16; 0.94 before attention multiplied in bfloat16 too, 0.85 before weights were packed into panels, 0.53
before our products were in bfloat16) and **0.83 x** (SmolLM2, Q4_1), a token of SmolLM2 3.36 x.

**Prompts with quantised weights are where we lose.** On the same EPYC, OpenVINO 2026.4.1, NNCF 3.4.0; a dozen other
processes competed for the two cores, so the table shows *CPU time*, OpenVINO's over ours, the minimum of two to six
alternating rounds:

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

In the first row ours multiplied bf16 weights in float32, at the full rate of those instructions; OpenVINO rounds
activations to bfloat16, which AVX512-BF16 multiplies twice as fast. `--activations bf16`, newer than that row and now
the default on such CPUs, does so too.
With quantised weights ours keeps 16 or 12 bits of the activations, which takes more byte products than OpenVINO's 8;
`--activations int8` compares like with like. A cold first token of SmolLM2 (128 tokens) took OpenVINO 9.3 times as
long, in three noisy rounds: opening the compiled model takes 0.2 s of CPU time, and the first step after it 0.4 s more.

With AVX2 only (no AVX-512, no AVX-VNNI) OpenVINO was slower in every row, by wall clock
([tables](#amd-epyc-2-cpus-avx2)): a prompt of 512 tokens of 135m took it 1.44 (bf16), 1.47 (int8), 1.61 (int4z)
and 1.66 (int4) times as long, a token 3.0 (bf16, int8) to 4.2 times (int4), and a token of SmolLM2 (Q4_1) 4.6 times.
"""
