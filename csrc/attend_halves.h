// Attention of queries that are rounded to bfloat16 over keys and values of bfloat16, by pairs of numbers (pairs.h); the weights of values are
// rounded to bfloat16 too, and their total is that of the rounded ones. Everything between is float32.
// Knows nothing about units or pages. By AVX-512 alone: other instruction sets round nothing there (attend_stored.h, attend_copied.h).
//
//   score      two sums, of the pairs of channels with an even number and with an odd one, each in the order of channels; then both together
//   a sum      pair of positions after pair, from an even position on; one of them that a query does not see counts as zero
//
// So a query has the same bits alone, where keys are turned 16 at a time as they are read, and among many that share a copy. Denormals are
// zero meanwhile (Flushed), by whoever calls this.
#pragma once

#include "attend_copied.h"
#include "halves.h"
#include "pairs.h"

namespace coterie::COTERIE_ISA {

constexpr int64_t kMostHalves = 512;  // channels of the widest head

// Of rows of queries, keys and values in copies and of sums.
constexpr int64_t padded_halves(int64_t C) { return tiles(C, kStepColumns) * kStepColumns; }

// Queries hold their halves where their floats would begin; so do weights in a row of scores.
void round_query(float* row, int64_t width);

// Rows of one head in pages: row j is `offset` bytes behind rows[j].
struct Halves {
  bytes* const* rows;
  int64_t offset, C;
};

// scores[m * kSpan ..] of `count` queries, whose `q` follow one another, with the W keys from the first row on. `ask`: what is fetched meanwhile.
void score_halves(const Halves& keys, const Query* queries, int64_t count, float scale, float* scores, bytes* ask);

// begin_partial() of attend.h, with weights that are rounded.
void begin_halves(const Query& query, float* scores, int64_t width, float cap);

// The sums of `count` queries += weights @ values over positions that all of them see.
void weigh_halves(const Halves& values, Range seen, const Query* queries, int64_t count, const float* weights, bytes* ask);

// From scores of queries that see different positions to their partials.
void finish_halves(const Halves& values, const Query* queries, int64_t count, float cap, float* scores);

// y = sums / total, of C channels. Sums lie in an order of their own.
void put_halves(const float* sums, float total, int64_t C, float* y);

// Positions [first, last) of the span's first head, turned and paired: keys [position / W][pair of channels][W], values
// [pair of positions][channel].
void copy_halves(const Span& span, int64_t first, int64_t last, Copy& copy);

// attend_copied() of such a copy.
void attend_halves(const Copy& copy, const Span& span, const Query* queries, int64_t count, float scale, float cap, float* scores);

}  // namespace coterie::COTERIE_ISA
