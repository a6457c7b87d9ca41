// Products of weights of bfloat16 with activations that are rounded to bfloat16 (bf16_bf16 of instruction.h).
// Knows nothing about ops or how work is shared out.
//
// By AVX-512 a lane has two neighbouring columns of every 32, so rows are read as a file has them:
//
//   columns   0 1 | 2 3 | .. | 30 31 | 32 33 ..      lane 0 adds 1, 0, 33, 32, ..; lane 1 adds 3, 2, 35, 34, ..
//
// Each product is added by itself and rounded to nearest; denormals count as zero and become zero. That is what VDPBF16PS computes (Intel's
// manual), and where a CPU lacks it two fma have the same bits. Other instruction sets add rounded activations as panel.h and streams.h add any.
// Either way a token has the same bits alone, in a batch and in a chunk.
#pragma once

#include "panel.h"

namespace coterie::COTERIE_ISA {

constexpr bool kHalves = W == 16;  // tokens lie as halves of 16 bits, else as float32
constexpr int64_t kStepColumns = 32;

// Numbers between tokens in a tile, of few tokens too where they are halves: an odd number of lines, zeros behind a token's last.
constexpr int64_t rounded_stride(int64_t K) {
  constexpr int64_t line = kHalves ? kStepColumns : 16;
  return (tiles(K, line) | 1) * line;
}

// Room for so many rounded tokens; `many`: a panel meets them.
constexpr int64_t rounded_floats(int64_t tokens, int64_t K, bool many) {
  if (kHalves) return tokens * rounded_stride(K) / 2;
  return many ? tokens * rounded_stride(K) : beside_floats(tokens, K);
}

// Rounds token number `token` of `tokens` to its place: halves, or float32 as panel_tile and dots_group read them.
void put_rounded(const float* x, int64_t K, int64_t token, int64_t tokens, bool many, float* out);

// By AVX-512 alone: out[t * out_stride + n] = dot(rounded token t, w row n). `sums` are those of Work, null for few tokens.
void halves_tile(const float* rounded, int64_t tokens, bytes* w, int64_t N, int64_t K, float* out, int64_t out_stride, float* sums);

// As dots_along of streams.h.
void halves_along(const float* rounded, int64_t tokens, const Rows<4>& rows, int64_t each, int64_t K, float* out, int64_t out_stride,
                  int64_t out_step);

}  // namespace coterie::COTERIE_ISA
