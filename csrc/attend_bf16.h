// Attention by products of bfloat16 pairs (pairs.h): keys and values are stored as bfloat16, queries are rounded to it,
// and so are softmax weights, whose total is that of the rounded ones. Everything between is float32.
// Knows nothing about units or pages. AVX-512 only: other instruction sets round nothing
// in attention (attend_stored.h, attend_copied.h).
//
//   score          two sums, over even and over odd pairs of channels, each in order; then the two are added
//   weighted sum   pairs of positions in order, from an even position on; a position that a query does not see counts as zero
//
// So a query's result is bit-identical alone, where keys are transposed 16 at a time as they are read, and among many
// that share a copy. Callers flush denormals to zero meanwhile (Flushed).
#pragma once

#include "attend_copied.h"
#include "bf16_products.h"
#include "pairs.h"

namespace coterie::COTERIE_ISA {

constexpr int64_t kMaxBf16Channels = 512;  // channels of the widest head that is supported

// Padded width of queries, of copied keys and values, and of sums.
constexpr int64_t padded_bf16(int64_t C) { return tiles(C, kStepColumns) * kStepColumns; }

// Rounds a query in place: its bfloat16 numbers begin where its floats did. So do weights in a row of scores.
void round_query(float* row, int64_t width);

// Rows of one head in pages: row j begins at rows[j] + offset bytes.
struct Bf16Rows {
  bytes* const* rows;
  int64_t offset, C;
};

// scores[m * kSpan ..] of `count` queries, whose `q` are contiguous, with the W keys from the first row on.
// `prefetch`: the address to prefetch from.
void score_bf16(const Bf16Rows& keys, const Query* queries, int64_t count, float scale, float* scores, bytes* prefetch);

// begin_partial() of attend.h, with rounded weights.
void begin_partial_bf16(const Query& query, float* scores, int64_t width, float cap);

// The sums of `count` queries += weights @ values over positions that all of them see.
void add_weighted_bf16(const Bf16Rows& values, Range seen, const Query* queries, int64_t count, const float* weights, bytes* prefetch);

// Computes the partials of queries that see different positions from their scores.
void finish_bf16(const Bf16Rows& values, const Query* queries, int64_t count, float cap, float* scores);

// y = sums / total, over C channels, which the sums have in another order.
void put_bf16_sums(const float* sums, float total, int64_t C, float* y);

// Copies positions [first, last) of the span's first head, transposed and paired: keys [position / W][pair of
// channels][W], values [pair of positions][channel].
void copy_bf16(const Span& span, int64_t first, int64_t last, Copy& copy);

// attend_copied() for such a copy.
void attend_bf16(const Copy& copy, const Span& span, const Query* queries, int64_t count, float scale, float cap, float* scores);

}  // namespace coterie::COTERIE_ISA
