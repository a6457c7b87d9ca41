// Tiles of tokens: the dot products of a tile with rows of a weight, RMS norm of rows, biases.
// Knows nothing about ops or how work is shared out.
//
// Every dot product sums k = 0, W, 2W, ... lane by lane in one accumulator and then the lanes as a tree, whatever the blocking:
// a token's result has the same bits alone, in a batch and in a chunk.
#pragma once

#include "scratch.h"
#include "vec.h"

namespace coterie::COTERIE_ISA {

constexpr int64_t kTileTokens = 16;
constexpr int64_t kTileRows = 32;  // rows of a weight per unit

constexpr int64_t tiles(int64_t count, int64_t tile) { return (count + tile - 1) / tile; }
constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Bytes of a scratch tile of kTileTokens rows of `width` floats.
constexpr int64_t tile_bytes(int64_t width) { return static_cast<int64_t>(padded(static_cast<size_t>(kTileTokens * width) * 4)); }

// The part of a [T, N] result that a unit computes. Units that share rows of the weight follow one another.
struct Block {
  int64_t token, tokens, row, rows;
};

inline Block block_of(int64_t unit, int64_t T, int64_t N) {
  const int64_t token_tiles = tiles(T, kTileTokens);
  const int64_t token = unit % token_tiles * kTileTokens, row = unit / token_tiles * kTileRows;
  return {token, smaller(kTileTokens, T - token), row, smaller(kTileRows, N - row)};
}

// out[m * out_stride + n] = dot(x row m, w row n), M tokens by N rows at once.
template <DType D, int M, int N>
inline void dots(const float* x, int64_t x_stride, bytes* w, int64_t K, float* out, int64_t out_stride) {
  constexpr int64_t size = size_of(static_cast<int64_t>(D));
  const int64_t stride = row_bytes(static_cast<int64_t>(D), K);
  V acc[M][N];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) acc[m][n] = V{};
  int64_t k = 0;
  for (; k + W <= K; k += W) {
    V wv[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) wv[n] = load_weights<D>(w + n * stride + k * size);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const V xv = load(x + m * x_stride + k);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) acc[m][n] = fma(xv, wv[n], acc[m][n]);
    }
  }
  if (k < K) {
    for (int n = 0; n < N; ++n) {
      const V wv = load_weights_part<D>(w + n * stride + k * size, K - k);
      for (int m = 0; m < M; ++m) acc[m][n] = fma(load_part(x + m * x_stride + k, K - k), wv, acc[m][n]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) out[m * out_stride + n] = sum(acc[m][n]);
}

// M tokens against all N rows, as many rows at once as registers allow.
template <DType D, int M>
inline void dots_rows(const float* x, int64_t x_stride, bytes* w, int64_t N, int64_t K, float* out, int64_t out_stride) {
  const int64_t stride = row_bytes(static_cast<int64_t>(D), K);
  constexpr int kRows = W == 16 ? (M == 1 ? 8 : 4) : W == 8 ? (M == 1 ? 8 : M == 4 ? 2 : 4) : 2;
  int64_t n = 0;
  for (; n + kRows <= N; n += kRows) dots<D, M, kRows>(x, x_stride, w + n * stride, K, out + n, out_stride);
  if constexpr (kRows > 4) {
    for (; n + 4 <= N; n += 4) dots<D, M, 4>(x, x_stride, w + n * stride, K, out + n, out_stride);
  }
  for (; n < N; ++n) dots<D, M, 1>(x, x_stride, w + n * stride, K, out + n, out_stride);
}

// A tile of `tokens` x N dot products with N rows of K weights that start at `w`.
// The one place where kernels meet the type of a weight.
inline void dot_tile(const float* x, int64_t x_stride, int64_t tokens, bytes* w, int64_t dtype, int64_t N, int64_t K,
                     float* out, int64_t out_stride) {
  with_dtype(dtype, [&]<DType D>() {
    constexpr int64_t kGroup = 4;  // rows kept in the first-level cache while the tile's tokens pass
    if (tokens == 1) return dots_rows<D, 1>(x, x_stride, w, N, K, out, out_stride);
    for (int64_t n = 0; n < N; n += kGroup) {
      const int64_t rows = smaller(kGroup, N - n);
      bytes* group = weight_row(w, dtype, K, n);
      int64_t t = 0;
      for (; t + 4 <= tokens; t += 4)
        dots_rows<D, 4>(x + t * x_stride, x_stride, group, rows, K, out + t * out_stride + n, out_stride);
      const float* rest = x + t * x_stride;
      float* rest_out = out + t * out_stride + n;
      switch (tokens - t) {
        case 3: dots_rows<D, 3>(rest, x_stride, group, rows, K, rest_out, out_stride); break;
        case 2: dots_rows<D, 2>(rest, x_stride, group, rows, K, rest_out, out_stride); break;
        case 1: dots_rows<D, 1>(rest, x_stride, group, rows, K, rest_out, out_stride); break;
        default: break;
      }
    }
  });
}

// out[t][n] += bias[first + n]; does nothing without a bias.
inline void add_bias(float* out, int64_t out_stride, int64_t tokens, bytes* bias, int64_t dtype, int64_t first, int64_t N) {
  if (bias == nullptr) return;
  with_dtype(dtype, [&]<DType D>() {
    constexpr int64_t size = D == DType::f32 ? 4 : 2;
    for (int64_t n = 0; n < N; ++n) {
      const float b = widen<D>(bias + (first + n) * size);
      for (int64_t t = 0; t < tokens; ++t) out[t * out_stride + n] += b;
    }
  });
}

// y = x / sqrt(mean(x^2) + eps) * weight over one row of C elements; y may be x.
inline void norm_row(const float* x, bytes* weight, int64_t dtype, int64_t C, double eps, float* y) {
  V squares{};
  int64_t c = 0;
  for (; c + W <= C; c += W) squares = fma(load(x + c), load(x + c), squares);
  if (c < C) squares = fma(load_part(x + c, C - c), load_part(x + c, C - c), squares);
  const float mean = sum(squares) / static_cast<float>(C);
  const V factor = splat(1.0f / __builtin_sqrtf(mean + static_cast<float>(eps)));
  with_dtype(dtype, [&]<DType D>() {
    constexpr int64_t size = D == DType::f32 ? 4 : 2;
    int64_t i = 0;
    for (; i + W <= C; i += W) store(y + i, load(x + i) * factor * load_weights<D>(weight + i * size));
    if (i < C) {
      const V last = load_part(x + i, C - i) * factor * load_weights_part<D>(weight + i * size, C - i);
      store_part(y + i, last, C - i);
    }
  });
}

// Rotate the halves of one head of C channels in place of y; y may be x.
inline void rope_row(const float* x, const float* cosines, const float* sines, int64_t C, float* y) {
  const int64_t half = C / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[i], b = x[i + half];
    y[i] = a * cosines[i] - b * sines[i];
    y[i + half] = b * cosines[i] + a * sines[i];
  }
}

}  // namespace coterie::COTERIE_ISA
