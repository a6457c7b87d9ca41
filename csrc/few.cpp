// A translation unit of its own, once per instruction set: every product of few tokens runs it.
#include "few.h"

#include "scratch.h"

namespace coterie::COTERIE_ISA {

namespace {

// acc[m * N + n] += the W products from column k on.
template <DType D, int M, int N>
void add_vectors(const float* x, const Rows<N>& rows, int64_t k, V (&acc)[M * N]) {
  V wv[N];
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) wv[n] = pin_in_register(load_weights<D>(rows.at[n] + k * size_of(static_cast<int64_t>(D))));
  add_products<M, N>(x, wv, acc);
}

// acc[m * N + n] += the last `count` < W products.
// Works on a copy, so that callers may keep their accumulators in registers.
template <DType D, int M, int N>
void add_last(const float* x, const Rows<N>& rows, int64_t k, int64_t count, V (&acc)[M * N]) {
  V sums[M * N];
#pragma GCC unroll 16
  for (int i = 0; i < M * N; ++i) sums[i] = acc[i];
#pragma GCC unroll 1
  for (int n = 0; n < N; ++n) {
    const V wv = load_weights_part<D>(rows.at[n] + k * size_of(static_cast<int64_t>(D)), count);
#pragma GCC unroll 1
    for (int m = 0; m < M; ++m) sums[m * N + n] = fma(load_part(x + m * W, count), wv, sums[m * N + n]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < M * N; ++i) acc[i] = sums[i];
}

// Rows of an unpacked type, for streams.h.
template <DType D>
struct PlainRows {
  using Number = float;
  static int64_t row_bytes(int64_t K) { return coterie::row_bytes(static_cast<int64_t>(D), K); }
  static int64_t token_numbers(int64_t K) { return padded_to_vectors(K); }

  // out[m * out_stride + n * out_step] = dot(token m, row n), for M interleaved tokens and N rows at once.
  // Prefetches what lies `ahead` bytes after these rows, unless 0.
  template <int M, int N>
  [[gnu::noinline]] static void dots(const float* x, const Rows<N>& rows, int64_t K, float* out, int64_t out_stride, int64_t out_step,
                                     int64_t ahead) {
    constexpr int64_t size = size_of(static_cast<int64_t>(D)), line = static_cast<int64_t>(kLine) / size;
    const Rows<N> at = rows;
    V acc[M * N];
#pragma GCC unroll 16
    for (int i = 0; i < M * N; ++i) acc[i] = V{};
    int64_t k = 0;
    while (k + line <= K) {
      if (ahead != 0)
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) fetch_ahead(at.at[n] + ahead + k * size);
#pragma GCC unroll 8
      for (int64_t i = 0; i < line; i += W, x += M * W) add_vectors<D, M, N>(x, at, k + i, acc);
      k += line;
    }
    for (; k + W <= K; k += W, x += M * W) add_vectors<D, M, N>(x, at, k, acc);
    if (k < K) add_last<D, M, N>(x, at, k, K - k, acc);
    put_sums<M, N>(acc, out, out_stride, out_step);
  }
};

template <int Streams>
void along(const float* x, int64_t tokens, int64_t dtype, const Rows<Streams>& rows, int64_t each, int64_t K, float* out, int64_t out_stride,
           int64_t out_step) {
  with_dtype(dtype, [&]<DType D>() { dots_along<PlainRows<D>>(x, tokens, rows, each, K, out, out_stride, out_step); });
}

}  // namespace

void few_tile(const float* x, int64_t tokens, bytes* w, int64_t dtype, int64_t N, int64_t K, float* out, int64_t out_stride) {
  with_dtype(dtype, [&]<DType D>() {
    with_streams(tokens, [&]<int Streams>() { dots_streamed<PlainRows<D>, Streams>(x, tokens, w, N, K, out, out_stride); });
  });
}

void few_along(const float* x, int64_t tokens, int64_t dtype, const Rows<3>& rows, int64_t each, int64_t K, float* out, int64_t out_stride,
               int64_t out_step) {
  along(x, tokens, dtype, rows, each, K, out, out_stride, out_step);
}

void few_along(const float* x, int64_t tokens, int64_t dtype, const Rows<4>& rows, int64_t each, int64_t K, float* out, int64_t out_stride,
               int64_t out_step) {
  along(x, tokens, dtype, rows, each, K, out, out_stride, out_step);
}

}  // namespace coterie::COTERIE_ISA
