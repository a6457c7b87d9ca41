// Latent attention: products of one head with its rows of the weight [H, N + V, R] that expands latent rows to keys and
// values. They map queries into the latent space, and what is gathered there back to values.
// Knows nothing about pages or positions.
//
// Each token has its own accumulators and adds the same terms in the same order, however many tokens are processed at
// once: its result is bit-identical alone, in a batch and in a chunk.
#pragma once

#include "op.h"

namespace coterie::COTERIE_ISA {

constexpr int64_t kLatentTokens = 64;  // tokens of a unit, which reads one head's rows
constexpr int64_t kTokensAtOnce = 4;

inline int64_t latent_units(int64_t T, int64_t H) { return tiles(T, kLatentTokens) * H; }

// Units of the same tokens follow one another.
struct LatentUnit {
  int64_t head, first, last;
};

inline LatentUnit latent_unit(int64_t unit, int64_t T, int64_t H) {
  const int64_t first = unit / H * kLatentTokens;
  return {unit % H, first, smaller(T, first + kLatentTokens)};
}

// Input rows and output rows, with the distances between them.
struct Ends {
  const float* x;
  int64_t x_step;
  float* y;
  int64_t y_step;
  Ends from(int64_t token) const { return {x + token * x_step, x_step, y + token * y_step, y_step}; }
};

// y[c ..] = the sum over N rows of x[n] * row n [c ..], S vectors of columns at once; kPart: only `count` columns.
template <DType D, int M, int S, bool kPart>
inline void add_rows(const Ends& ends, bytes* rows, int64_t N, int64_t row_size, int64_t c, int64_t count) {
  V acc[M][S] = {};
  for (int64_t n = 0; n < N; ++n, rows += row_size) {
    V w[S];
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) {
      bytes* at = rows + (c + s * W) * size_of(static_cast<int64_t>(D));
      w[s] = kPart ? load_weights_part<D>(at, count) : pin_in_register(load_weights<D>(at));
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      const V factor = splat(ends.x[m * ends.x_step + n]);
#pragma GCC unroll 8
      for (int s = 0; s < S; ++s) acc[m][s] = fma(factor, w[s], acc[m][s]);
    }
  }
  for (int m = 0; m < M; ++m)
    for (int s = 0; s < S; ++s) {
      float* at = ends.y + m * ends.y_step + c + s * W;
      if constexpr (kPart) store_part(at, acc[m][s], count);
      else store(at, acc[m][s]);
    }
}

template <DType D, int M>
inline void to_latent(const Ends& ends, bytes* rows, int64_t N, int64_t R) {
  constexpr int kWide = M == 1 ? 8 : 2;  // as many accumulators as registers allow
  const int64_t row_size = R * size_of(static_cast<int64_t>(D));
  int64_t c = 0;
  for (; c + kWide * W <= R; c += kWide * W) add_rows<D, M, kWide, false>(ends, rows, N, row_size, c, 0);
  for (; c + W <= R; c += W) add_rows<D, M, 1, false>(ends, rows, N, row_size, c, 0);
  if (c < R) add_rows<D, M, 1, true>(ends, rows, N, row_size, c, R - c);
}

// y[n] = dot(x, row n), S rows at once.
template <DType D, int M, int S>
inline void dot_rows(const Ends& ends, bytes* rows, int64_t R, int64_t row_size, int64_t n) {
  constexpr int64_t size = size_of(static_cast<int64_t>(D));
  V acc[M][S] = {};
  int64_t c = 0;
  for (; c + W <= R; c += W) {
    V w[S];
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s) w[s] = pin_in_register(load_weights<D>(rows + s * row_size + c * size));
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      const V x = pin_in_register(load(ends.x + m * ends.x_step + c));
#pragma GCC unroll 4
      for (int s = 0; s < S; ++s) acc[m][s] = fma(x, w[s], acc[m][s]);
    }
  }
  if (c < R)
    for (int s = 0; s < S; ++s) {
      const V w = load_weights_part<D>(rows + s * row_size + c * size, R - c);
      for (int m = 0; m < M; ++m) acc[m][s] = fma(load_part(ends.x + m * ends.x_step + c, R - c), w, acc[m][s]);
    }
  for (int m = 0; m < M; ++m)
    for (int s = 0; s < S; ++s) ends.y[m * ends.y_step + n + s] = sum(acc[m][s]);
}

template <DType D, int M>
inline void from_latent(const Ends& ends, bytes* rows, int64_t count, int64_t R) {
  constexpr int kRows = kRegisters == 32 || M == 1 ? 4 : 2;  // as many accumulators as registers allow
  const int64_t row_size = R * size_of(static_cast<int64_t>(D));
  int64_t n = 0;
  for (; n + kRows <= count; n += kRows) dot_rows<D, M, kRows>(ends, rows + n * row_size, R, row_size, n);
  for (; n < count; ++n) dot_rows<D, M, 1>(ends, rows + n * row_size, R, row_size, n);
}

// Calls `body` with kTokensAtOnce tokens at a time, then with one at a time:
// their number as a template argument, and the index of the first.
template <class Body>
inline void each_tokens_at_once(int64_t tokens, Body body) {
  int64_t t = 0;
  for (; t + kTokensAtOnce <= tokens; t += kTokensAtOnce) body.template operator()<kTokensAtOnce>(t);
  for (; t < tokens; ++t) body.template operator()<1>(t);
}

// Row `row` of a head's N + V.
template <class Op>
inline bytes* head_row(const Op& op, int64_t head, int64_t row) {
  return op.weight + (head * (op.N + op.V) + row) * op.latent * size_of(op.weight_dtype);
}

}  // namespace coterie::COTERIE_ISA
