// Dot products of activations rounded to whole numbers (whole_record.h) with packed rows, in whole numbers.
// Knows nothing about ops or how work is shared out.
//
//   sum over groups of (sum of q * weight's whole number) * (scale * weight's scale)
//   q4z: sum over groups of (sum of q * weight's whole number - zero * sum of q) * (scale * weight's scale)
//   q6: as the first, in blocks of 256, whose whole numbers have their scales of 16 in them
//
// Eight lanes, whatever the instruction set: of int8 and q6 each has an eighth of every group, of others every eighth group. What a lane takes from a
// group is whole, so exact, and groups are added in order. No blocking of tokens or rows changes the bits.
#pragma once

#include "panel.h"
#include "whole_record.h"

namespace coterie::COTERIE_ISA {

// A panel of packed rows, where many tokens meet one (whole_panel.h): so many rows, so many records of a token at once, and so many tokens.
constexpr int64_t kPanelRows = 32, kPanelEights = 6, kPanelTokens = 8;

// What such a panel needs, and the sums of so many tokens; by AVX2 that of whole_panel_avx2.h, for which AVX-512's has room too.
#if defined(__AVX512F__)
constexpr int64_t kWholePanelFloats = kPanelEights * kEight * (16 + 1) * kPanelRows;
constexpr int64_t whole_sums_floats(int64_t tokens) { return tokens * kEight * kPanelRows; }
#else
constexpr int64_t kWholePanelFloats = W == 8 ? 3 * kEight * (16 + 2) * 16 : 0;
constexpr int64_t whole_sums_floats(int64_t tokens) { return W == 8 ? tokens * kEight * 16 : 0; }
#endif

// Bytes for the records of a tile's tokens; of many for those too that are being made before they are side by side.
constexpr int64_t tile_records_bytes(int64_t dtype, int64_t tokens, int64_t K, bool many) {
  return (many ? (whole_parts(tokens, kPanelTokens) + 1) * kPanelTokens : tokens) * records_bytes(dtype, K);
}

// The records of token `token` of `tokens` in a tile, which come in their order: one token's after the other's, or, of `many` tokens where the
// CPU is made for it, side by side (whole_beside.h).
void put_records(const float* x, int64_t K, int64_t dtype, int64_t token, int64_t tokens, bool many, uint8_t* records);

// out[t * out_stride + n] = dot(rounded x row t, w row n); `records` are those of the tokens, as put_records left them. `work` is there where
// there are many tokens.
void whole_tile(bytes* records, int64_t tokens, bytes* w, int64_t dtype, int64_t N, int64_t K, float* out, int64_t out_stride, const Work& work);

}  // namespace coterie::COTERIE_ISA
