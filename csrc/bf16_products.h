// Products of bfloat16 weights with activations that are rounded to bfloat16 (bf16_bf16 of instruction.h).
// Knows nothing about ops or how work is shared out.
//
// With AVX-512 a lane has two neighbouring columns of every 32, so rows are read as they are in the file:
//
//   columns   0 1 | 2 3 | .. | 30 31 | 32 33 ..      lane 0 adds 1, 0, 33, 32, ..; lane 1 adds 3, 2, 35, 34, ..
//
// Products are added one at a time, each sum rounded to nearest; denormal inputs and results become zero. That is what
// VDPBF16PS computes (Intel's manual); where a CPU lacks it, two FMAs give the same bits. Other instruction sets add
// rounded activations as panel.h and streams.h add any other.
// Either way a token's result is bit-identical alone, in a batch and in a chunk.
#pragma once

#include "panel.h"

namespace coterie::COTERIE_ISA {

constexpr bool kBf16Tiles = W == 16;  // rounded tokens are stored as bfloat16, else as float32
constexpr int64_t kStepColumns = 32;

// Numbers from one token to the next in a tile (of few tokens only if they are stored as bfloat16): an odd number of
// cache lines, zero-filled after the token.
constexpr int64_t rounded_stride(int64_t K) {
  constexpr int64_t line = kBf16Tiles ? kStepColumns : 16;
  return (tiles(K, line) | 1) * line;
}

// Floats needed for `tokens` rounded tokens; `many`: they are multiplied by a panel.
constexpr int64_t rounded_floats(int64_t tokens, int64_t K, bool many) {
  if (kBf16Tiles) return tokens * rounded_stride(K) / 2;
  return many ? tokens * rounded_stride(K) : interleaved_floats(tokens, K);
}

// Rounds token `token` of `tokens` into its place:
// as bfloat16, or as float32 in the format of panel_tile or dots_group.
void put_rounded(const float* x, int64_t K, int64_t token, int64_t tokens, bool many, float* out);

// AVX-512 only: out[t * out_stride + n] = dot(rounded token t, w row n). `sums` are those of Work, null for few tokens.
void bf16_tile(const float* rounded, int64_t tokens, bytes* w, int64_t N, int64_t K, float* out, int64_t out_stride, float* sums);

// AVX-512 only: like dots_along of streams.h.
void bf16_along(const float* rounded, int64_t tokens, const Rows<4>& rows, int64_t each, int64_t K, float* out, int64_t out_stride,
                  int64_t out_step);

}  // namespace coterie::COTERIE_ISA
