// Integer dot products of quantised activations (integer_record.h) with packed rows.
// Knows nothing about ops or how work is shared out.
//
//   sum over groups of (sum of q * weight's integer) * (scale * weight's scale)
//   q4z: sum over groups of (sum of q * weight's integer - zero point * sum of q) * (scale * weight's scale)
//   q6: as the first, in blocks of 256, whose integers include their scales of 16 weights
//
// There are eight lanes on every instruction set: for q8 and q6 each has an eighth of every group, for other types
// every eighth group. A lane's part of a group is a sum of integers, so exact, and groups are added in order: no
// blocking of tokens or rows changes the bits.
#pragma once

#include "integer_record.h"
#include "panel.h"

namespace coterie::COTERIE_ISA {

// A panel of packed rows, for many tokens (integer_panel.h):
// its rows, the records of a token that it covers, and tokens at a time.
constexpr int64_t kPanelRows = 32, kPanelEights = 6, kPanelTokens = 8;

// Floats of such a panel, and of the sums of `tokens` tokens.
// With AVX2 those of integer_panel_avx2.h, which AVX-512's have room for too.
#if defined(__AVX512F__)
constexpr int64_t kIntegerPanelFloats = kPanelEights * kEight * (16 + 1) * kPanelRows;
constexpr int64_t integer_sums_floats(int64_t tokens) { return tokens * kEight * kPanelRows; }
#else
constexpr int64_t kIntegerPanelFloats = W == 8 ? 3 * kEight * (16 + 2) * 16 : 0;
constexpr int64_t integer_sums_floats(int64_t tokens) { return W == 8 ? tokens * kEight * 16 : 0; }
#endif

// Bytes of the records of a tile's tokens; of many tokens also of those that are about to be interleaved.
constexpr int64_t tile_records_bytes(int64_t dtype, int64_t tokens, int64_t K, bool many) {
  return (many ? (ceil_div(tokens, kPanelTokens) + 1) * kPanelTokens : tokens) * records_bytes(dtype, K);
}

// Writes the records of token `token` of `tokens` in a tile; called in the order of tokens. One token's follow the
// other's or, of `many` tokens with VNNI, they are interleaved (integer_interleave.h).
void put_records(const float* x, int64_t K, int64_t dtype, int64_t token, int64_t tokens, bool many, uint8_t* records);

// out[t * out_stride + n] = dot(rounded x row t, w row n); `records` are those of the tokens, as put_records wrote
// them. `work` has memory for many tokens only.
void integer_tile(bytes* records, int64_t tokens, bytes* w, int64_t dtype, int64_t N, int64_t K, float* out, int64_t out_stride, const Work& work);

}  // namespace coterie::COTERIE_ISA
