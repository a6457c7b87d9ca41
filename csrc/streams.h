// Few tokens against many rows of a weight, which are read as a few long streams.
// Knows nothing about what a row holds.
//
//   rows   | 0 1 2 .. | 8 9 10 .. | 16 17 18 .. | 24 25 26 .. |     first 0 8 16 24 together, then 1 9 17 25, ..
//
// Each stream is an equal part of the rows from end to end. Hardware prefetchers follow a few long streams; of neighbouring rows side
// by side they lose track. No result depends on it.
#pragma once

#include "vec.h"

namespace coterie::COTERIE_ISA {

inline void fetch_ahead([[maybe_unused]] bytes* at) {
#if defined(__GNUC__)
  __builtin_prefetch(at, 0, 2);
#endif
}

// All tokens of a tile against N rows, which stay in the caches meanwhile. `next`: what comes after them in their streams is fetched while
// they are used again, or, with `last`, when they are used once: hardware knows nothing of what follows the end of a stream.
// Rows::dots<M, N> is M tokens by N rows at once.
template <class Rows, int N>
inline void dots_group(const float* x, int64_t x_stride, int64_t tokens, bytes* w, int64_t stride, int64_t K, float* out,
                       int64_t out_stride, int64_t out_step, bytes* next, bool last) {
  constexpr int kTokens = W == 16 || N < 4 ? 4 : 2;  // what registers allow
  int64_t t = 0;
  const auto some = [&]<int M>() {
    bytes* ahead = t == 0 ? (last && tokens <= kTokens ? next : nullptr) : (t < 2 * kTokens ? next : nullptr);
    Rows::template dots<M, N>(x + t * x_stride, x_stride, w, stride, K, out + t * out_stride, out_stride, out_step, ahead);
    t += M;
  };
  while (t + kTokens <= tokens) some.template operator()<kTokens>();
  if (kTokens > 2 && tokens - t == 3) some.template operator()<3>();
  if (tokens - t == 2) some.template operator()<2>();
  if (tokens - t == 1) some.template operator()<1>();
}

// A tile of `tokens` x N dot products, in `Streams` streams; out[t * out_stride + n].
template <class Rows, int Streams>
inline void dots_streamed(const float* x, int64_t x_stride, int64_t tokens, bytes* w, int64_t N, int64_t K, float* out,
                          int64_t out_stride) {
  const int64_t row = Rows::row_bytes(K), each = N / Streams;
  for (int64_t n = 0; n < each; ++n) {
    const bool last = n + 1 == each;
    bytes* next = w + (last ? N : n + 1) * row;
    dots_group<Rows, Streams>(x, x_stride, tokens, w + n * row, each * row, K, out + n, out_stride, each, next, last);
  }
  for (int64_t n = each * Streams; n < N; ++n)
    dots_group<Rows, 1>(x, x_stride, tokens, w + n * row, row, K, out + n, out_stride, 1, w + (n + 1) * row, false);
}

}  // namespace coterie::COTERIE_ISA
