// Few tokens times many rows of a weight: the rows are read as a few long streams, the interleaved tokens as one.
// Knows nothing about what a row holds.
//
//   rows     | 0 1 2 .. | 8 9 10 .. | 16 17 18 .. | 24 25 26 .. |     first 0 8 16 24 together, then 1 9 17 25, ..
//   tokens   | W columns of token 0 | of 1 | of 2 | of 3 | the next W of 0 | of 1 ..       four interleaved, then the next four
//
// Each stream is an equal, contiguous part of the rows of a unit or, better, of the whole weight (tile.h, Block).
// Hardware prefetchers follow a few long streams; they lose track of neighbouring rows that are read together, and of
// four separate tokens that do not fit the L1 cache. No result depends on it.
#pragma once

#include "vec.h"

namespace coterie::COTERIE_ISA {

// Has to be inlined, and so do its callers: compilers take a function that only prefetches
// for one without effects, and drop calls of it.
[[gnu::always_inline]] inline void fetch_ahead([[maybe_unused]] bytes* at) {
#if defined(__GNUC__)
  __builtin_prefetch(at, 0, 2);
#endif
}

constexpr int64_t kInterleaved = 4;  // tokens that are interleaved; the last ones may be fewer. A single token is a plain row

constexpr int64_t padded_to_vectors(int64_t K) { return (K + W - 1) / W * W; }
constexpr int64_t interleaved_floats(int64_t tokens, int64_t K) { return tokens * padded_to_vectors(K); }

// Writes a token's row to its place among `tokens` interleaved ones,
// W numbers at a time, each vector passed through `made`.
template <class Made>
inline void interleave(const float* row, int64_t K, int64_t token, int64_t tokens, float* out, Made made) {
  const int64_t first = token / kInterleaved * kInterleaved, together = tokens - first < kInterleaved ? tokens - first : kInterleaved;
  float* at = out + first * padded_to_vectors(K) + (token - first) * W;
  int64_t k = 0;
  for (; k + W <= K; k += W, at += together * W) store(at, made(load(row + k)));
  if (k < K) store(at, made(load_part(row + k, K - k)));
}

inline void interleave(const float* row, int64_t K, int64_t token, int64_t tokens, float* out) {
  interleave(row, K, token, tokens, out, [](V numbers) { return numbers; });
}

// acc[m * N + n] += vector m of `x` * w[n].
template <int M, int N>
inline void add_products(const float* x, const V (&w)[N], V (&acc)[M * N]) {
#if defined(__GNUC__) && defined(__AVX2__) && !defined(__AVX512F__)
  if constexpr (M == 4 && N == 3) {  // takes all 16 registers: compilers would spill some accumulators
#define COTERIE_TOKEN(at, a, b, c)                                                                                       \
  "vmovups " #at "(%[x]), %[t]\n\tvfmadd231ps %[p], %[t], %[" #a "]\n\tvfmadd231ps %[q], %[t], %[" #b "]\n\t"            \
  "vfmadd231ps %[r], %[t], %[" #c "]\n\t"
    V token;
    asm(COTERIE_TOKEN(0, a, b, c) COTERIE_TOKEN(32, d, e, f) COTERIE_TOKEN(64, g, h, i) COTERIE_TOKEN(96, j, k, l)
        : [a] "+&x"(acc[0]), [b] "+&x"(acc[1]), [c] "+&x"(acc[2]), [d] "+&x"(acc[3]), [e] "+&x"(acc[4]),
          [f] "+&x"(acc[5]), [g] "+&x"(acc[6]), [h] "+&x"(acc[7]), [i] "+&x"(acc[8]), [j] "+&x"(acc[9]),
          [k] "+&x"(acc[10]), [l] "+&x"(acc[11]), [t] "=&x"(token)
        : [x] "r"(x), "m"(*reinterpret_cast<const float(*)[M * W]>(x)), [p] "x"(w[0]), [q] "x"(w[1]), [r] "x"(w[2]));
#undef COTERIE_TOKEN
    return;
  }
#endif
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    const V xv = pin_in_register(load(x + m * W));
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) acc[m * N + n] = fma(xv, w[n], acc[m * N + n]);
  }
}

// out[m * out_stride + n * out_step] = the sum of acc[m * N + n].
template <int M, int N>
inline void put_sums(const V (&acc)[M * N], float* out, int64_t out_stride, int64_t out_step) {
  float sums[M * N];
#pragma GCC unroll 4
  for (int i = 0; i < M * N / 4; ++i) sum4(acc[4 * i], acc[4 * i + 1], acc[4 * i + 2], acc[4 * i + 3], sums + 4 * i);
#pragma GCC unroll 4
  for (int i = M * N / 4 * 4; i < M * N; ++i) sums[i] = sum(acc[i]);
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) out[m * out_stride + n * out_step] = sums[m * N + n];
}

// Rows at N addresses: the current ones of N streams.
template <int N>
struct Rows {
  bytes* at[N];
};

// N rows from `first` on, `apart` bytes from one to the next.
template <int N>
inline Rows<N> rows_apart(bytes* first, int64_t apart) {
  Rows<N> rows;
  for (int n = 0; n < N; ++n) rows.at[n] = first + n * apart;
  return rows;
}

// How many streams few tokens are multiplied by at once: as many as registers allow.
constexpr int64_t streams_of(int64_t tokens) { return kRegisters == 32 || tokens <= 2 ? 4 : 3; }

// Calls `body` with their number as a template argument.
template <class Body>
inline void with_streams(int64_t tokens, Body body) {
  if (streams_of(tokens) == 4) return body.template operator()<4>();
  body.template operator()<3>();
}

// All tokens of a tile, in the format of Form, times N rows, which stay in the caches meanwhile. Form::dots<M, N>
// multiplies M tokens by N rows. What lies `ahead` bytes after the rows is prefetched while they are used again or,
// with `at_once`, even if they are used once.
template <class Form, int N>
inline void dots_group(const typename Form::Number* x, int64_t tokens, const Rows<N>& rows, int64_t K, float* out, int64_t out_stride, int64_t out_step,
                       int64_t ahead, bool at_once) {
  constexpr int kTokens = kRegisters == 32 || N < 4 ? kInterleaved : 2;  // as registers allow: with 4 rows 2 tokens
  int64_t t = 0;
  const auto some = [&]<int M>() {
    const bool fetch = t == 0 ? at_once && tokens <= kTokens : t < 2 * kTokens;
    Form::template dots<M, N>(x + t * Form::token_numbers(K), rows, K, out + t * out_stride, out_stride, out_step, fetch ? ahead : 0);
    t += M;
  };
  while (t + kTokens <= tokens) some.template operator()<kTokens>();
  if (kTokens > 2 && tokens - t == 3) some.template operator()<3>();
  if (tokens - t == 2) some.template operator()<2>();
  if (tokens - t == 1) some.template operator()<1>();
}

// `each` rows of every stream, from the given ones on; the streams continue after these, so that hardware follows them
// by itself.
// out[t * out_stride + stream * out_step + row].
template <class Form, int Streams>
inline void dots_along(const typename Form::Number* x, int64_t tokens, Rows<Streams> rows, int64_t each, int64_t K, float* out,
                       int64_t out_stride, int64_t out_step) {
  const int64_t row = Form::row_bytes(K);
  for (int64_t n = 0; n < each; ++n) {
    dots_group<Form, Streams>(x, tokens, rows, K, out + n, out_stride, out_step, row, false);
    for (bytes*& at : rows.at) at += row;
  }
}

// N contiguous rows, divided into equal streams; out[t * out_stride + n]. What follows the last row is prefetched at
// the end of the streams: hardware cannot foresee it.
template <class Form, int Streams>
inline void dots_streamed(const typename Form::Number* x, int64_t tokens, bytes* w, int64_t N, int64_t K, float* out, int64_t out_stride) {
  const int64_t row = Form::row_bytes(K), each = N / Streams;
  for (int64_t n = 0; n < each; ++n) {
    const bool last = n + 1 == each;
    const int64_t ahead = last ? (N - n) * row : row;
    dots_group<Form, Streams>(x, tokens, rows_apart<Streams>(w + n * row, each * row), K, out + n, out_stride, each, ahead, last);
  }
  for (int64_t n = each * Streams; n < N; ++n)
    dots_group<Form, 1>(x, tokens, rows_apart<1>(w + n * row, 0), K, out + n, out_stride, 1, row, false);
}

}  // namespace coterie::COTERIE_ISA
