// Weights packed in groups: rows of whole numbers, then a bfloat16 scale per group; a weight is their product.
// Knows nothing about ops or how work is shared out.
//
//   q8   | q: int8, padded to 32 | scale per 128 weights |
//   q4   | 16 bytes per 32 weights: byte i holds weight i in its low half, weight 16 + i in its high half, both plus 8 | scale per 32 |
//
// A product q * scale needs at most 16 bits, so float32 holds it exactly and every way to widen a weight gives the same bits.
// Sums run as tile.h says: k = 0, W, 2W, ... lane by lane, one accumulator. So a packed row gives the very bits that the same
// weights stored as float32 would give; but for a token alone on AVX2, which quant_alone.h sums.
#pragma once

#include <type_traits>

#include "quant_widen.h"
#include "scratch.h"
#include "streams.h"

namespace coterie::COTERIE_ISA {

constexpr bool kSumsScaled = W == 8;  // a token alone is quant_alone.h's
constexpr int64_t kPackedAheadBytes = 4096;
constexpr int64_t kStrideWeights = 128;  // of a row between two fetches ahead; a multiple of both groups
constexpr int64_t kScales = 64;          // of a row, widened together

inline void fetch_packed(bytes* at, int64_t size_bytes) {
#if defined(__GNUC__)
#pragma GCC unroll 16
  for (int64_t line = 0; line < size_bytes; line += static_cast<int64_t>(kLine)) __builtin_prefetch(at + line, 0, 2);
#endif
}

// acc[n] += x * row n over the block of weights from k on.
template <class Q, int N>
inline void block_dots(const float* x, bytes* w, int64_t stride, int64_t k, const typename Q::Scale* scale, V* acc) {
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) {
    V wide[kBlockWeights / W];
    Q::widen(w + n * stride, k, scale[n], wide);
#pragma GCC unroll 8
    for (int i = 0; i < kBlockWeights / W; ++i) acc[n] = fma(load(x + k + i * W), wide[i], acc[n]);
  }
}

// One token against N rows of whole blocks. Weights from `ahead` on are fetched meanwhile.
template <class Q, int N>
inline void quant_dots(const float* x, bytes* w, int64_t K, float* out, bytes* ahead) {
  const int64_t stride = Q::row_bytes(K);
  constexpr int64_t kStrideBytes = N * Q::row_bytes(kStrideWeights);
  V acc[N];
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) acc[n] = V{};
  float memory[N][W + kScales];
  typename Q::Scale scale[N];
  for (int64_t first = 0; first < K; first += kScales * Q::kGroup) {
    const int64_t end = K - first < kScales * Q::kGroup ? K : first + kScales * Q::kGroup;
    for (int n = 0; n < N; ++n)
      widen_scales<Q>(w + n * stride, K, first, (end - first + Q::kGroup - 1) / Q::kGroup, memory[n] + W);
    const auto prepare = [&](int64_t k) {
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) scale[n] = Q::prepare(memory[n] + W + (k - first) / Q::kGroup);
    };
    int64_t k = first;
    for (; k + kStrideWeights <= end; k += kStrideWeights, ahead += kStrideBytes) {
      fetch_packed(ahead, kStrideBytes);
#pragma GCC unroll 4
      for (int64_t i = 0; i < kStrideWeights; i += kBlockWeights) {
        if (i % Q::kGroup == 0) prepare(k + i);
        block_dots<Q, N>(x, w, stride, k + i, scale, acc);
      }
    }
    for (; k < end; k += kBlockWeights, ahead += kStrideBytes / 4) {
      fetch_packed(ahead, kStrideBytes / 4);
      prepare(k);
      block_dots<Q, N>(x, w, stride, k, scale, acc);
    }
  }
  static_assert(N == 4);
  sum4(acc[0], acc[1], acc[2], acc[3], out);
}

constexpr int64_t kPanelRows = 4, kPanelWeights = 512;  // 8 KiB, in the first-level cache while the tile's tokens pass
constexpr int64_t kPanelTokens = 16;                    // of a tile
constexpr int64_t kPanelTile = 32;                      // rows that pass the tokens' columns, which stay in that cache too
constexpr int kPanelAtOnce = W == 16 ? 4 : 3;           // tokens; with kPanelRows, as many sums as registers allow

// acc[m][n] += x row m * panel row n over `count` weights, M tokens at once; sums begin at 0 where it is the `first` time.
template <int M>
inline void panel_dots(const float* x, int64_t x_stride, const float* panel, int64_t count, bool first, V (*acc)[kPanelTile]) {
  V sums[M][kPanelRows];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int n = 0; n < kPanelRows; ++n) sums[m][n] = first ? V{} : acc[m][n];
  const auto add = [&](const auto& load_x, int64_t k) {
    V xv[M];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) xv[m] = load_x(x + m * x_stride + k);
#pragma GCC unroll 8
    for (int n = 0; n < kPanelRows; ++n) {
      const V wv = load(panel + n * kPanelWeights + k);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) sums[m][n] = fma(xv[m], wv, sums[m][n]);
    }
  };
  int64_t k = 0;
  for (; k + W <= count; k += W) add([](const float* at) { return load(at); }, k);
  if (k < count) add([&](const float* at) { return load_part(at, count - k); }, k);
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int n = 0; n < kPanelRows; ++n) acc[m][n] = sums[m][n];
}

// Weights [first, first + count) of up to kPanelRows rows, widened.
template <class Q>
inline void fill_panel(bytes* w, int64_t rows, int64_t K, int64_t first, int64_t count, float* panel) {
  for (int64_t n = 0; n < kPanelRows; ++n) {
    bytes* row = w + (n < rows ? n : 0) * Q::row_bytes(K);  // a missing row is computed and dropped
    for (int64_t k = 0; k < count; k += kBlockWeights) {
      V wide[kBlockWeights / W];
      Q::widen(row, first + k, scale_of<Q>(row, K, first + k), wide);
      for (int i = 0; i < kBlockWeights / W; ++i) store(panel + n * kPanelWeights + k + i * W, wide[i]);
    }
  }
}

// Several tokens against up to kPanelTile rows: each weight is widened once.
template <class Q>
inline void quant_panel(const float* x, int64_t x_stride, int64_t tokens, bytes* w, int64_t rows, int64_t K, float* out,
                        int64_t out_stride) {
  alignas(64) float panel[kPanelRows * kPanelWeights];
  V acc[kPanelTokens][kPanelTile];
  const int64_t stride = Q::row_bytes(K), bytes_next = rows * stride;
  const int64_t steps = ((K + kPanelWeights - 1) / kPanelWeights) * ((rows + kPanelRows - 1) / kPanelRows);
  int64_t done = 0;  // of the steps, while which as many rows that come next are fetched from end to end
  for (int64_t first = 0; first < K; first += kPanelWeights) {
    const int64_t count = K - first < kPanelWeights ? K - first : kPanelWeights;
    for (int64_t n = 0; n < rows; n += kPanelRows) {
      fill_panel<Q>(w + n * stride, rows - n, K, first, count, panel);
      const int64_t begin = bytes_next * done / steps, end = bytes_next * (done + 1) / steps;
      fetch_packed(w + bytes_next + begin, end - begin);
      ++done;
      const float* at = x + first;
      int64_t t = 0;
      const auto pass = [&]<int M>() {
        panel_dots<M>(at + t * x_stride, x_stride, panel, count, first == 0, reinterpret_cast<V(*)[kPanelTile]>(&acc[t][n]));
        t += M;
      };
      while (t + kPanelAtOnce <= tokens) pass.template operator()<kPanelAtOnce>();
      if (kPanelAtOnce > 3 && tokens - t == 3) pass.template operator()<3>();
      if (tokens - t == 2) pass.template operator()<2>();
      if (tokens - t == 1) pass.template operator()<1>();
    }
  }
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t n = 0; n < rows; ++n) out[t * out_stride + n] = sum(acc[t][n]);
}

constexpr int64_t kWidenedAgain = 8;  // up to so many tokens an int8 weight is widened in a register for every four of them

// Rows of whole blocks of int8 as streams.h reads them. Four bits do not: 32 of them are widened together, more than registers hold.
struct Q8Rows {
  static int64_t row_bytes(int64_t K) { return Q8::row_bytes(K); }

  template <int M, int N>
  [[gnu::noinline]] static void dots(const float* x, const Rows<N>& rows, int64_t K, float* out, int64_t out_stride,
                                     int64_t out_step, int64_t ahead) {
    V acc[M * N], scale[N];
#pragma GCC unroll 16
    for (int i = 0; i < M * N; ++i) acc[i] = V{};
    for (int64_t first = 0; first < K; first += Q8::kGroup) {
      const int64_t end = K - first < Q8::kGroup ? K : first + Q8::kGroup;
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) {
        scale[n] = scale_of<Q8>(rows.at[n], K, first);
        if (ahead != 0) fetch_packed(rows.at[n] + ahead + first, Q8::kGroup);
      }
#pragma GCC unroll 1
      for (int64_t k = first; k < end; k += W, x += M * W) {
        V wv[N];
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) wv[n] = kept(Q8::widen_vector(rows.at[n] + k, scale[n]));
        add_products<M, N>(x, wv, acc);
      }
    }
    put_sums<M, N>(acc, out, out_stride, out_step);
  }
};

// True where so many tokens are read side by side.
constexpr bool quant_beside(int64_t dtype, int64_t tokens, int64_t K) {
  return dtype == static_cast<int64_t>(DType::q8) && W == 8 && tokens > 1 && tokens <= kWidenedAgain && K % kBlockWeights == 0;
}

template <class Q>
inline void quant_rows(const float* x, int64_t x_stride, const float* beside, int64_t tokens, bytes* w, int64_t N, int64_t K,
                       float* out, int64_t out_stride) {
  constexpr int kRows = 4;
  int64_t n = 0;
  if constexpr (!kSumsScaled) {
    if (tokens == 1 && K % kBlockWeights == 0 && Q::row_bytes(K) >= 2 * W)
      for (; n + kRows <= N; n += kRows) {
        bytes* rows = w + n * Q::row_bytes(K);
        quant_dots<Q, kRows>(x, rows, K, out + n, rows + kRows * Q::row_bytes(K) + kPackedAheadBytes);
      }
  }
  if constexpr (std::is_same_v<Q, Q8> && W == 8)  // with other vectors it has not been measured
    if (beside != nullptr && quant_beside(static_cast<int64_t>(DType::q8), tokens, K)) {
      return with_streams(tokens, [&]<int Streams>() {
        dots_streamed<Q8Rows, Streams>(beside, tokens, w, N, K, out, out_stride);
      });
    }
  for (; n < N; n += kPanelTile) {
    const int64_t rows = N - n < kPanelTile ? N - n : kPanelTile;
    quant_panel<Q>(x, x_stride, tokens, w + n * Q::row_bytes(K), rows, K, out + n, out_stride);
  }
}

// Calls `body` with the packed type.
template <class Body>
inline void with_packed(int64_t dtype, Body body) {
  if (is_q8(dtype)) return body.template operator()<Q8>();
  body.template operator()<Q4>();
}

// out[t * out_stride + n] = dot(x row t, w row n) for packed rows; at most kPanelTokens tokens. `beside`: the same tokens side by side,
// or null.
inline void quant_tile(const float* x, int64_t x_stride, const float* beside, int64_t tokens, bytes* w, int64_t dtype, int64_t N,
                       int64_t K, float* out, int64_t out_stride) {
  with_packed(dtype, [&]<class Q>() { quant_rows<Q>(x, x_stride, beside, tokens, w, N, K, out, out_stride); });
}

// One row as float32.
inline void widen_row(bytes* row, int64_t dtype, int64_t K, float* out) {
  with_packed(dtype, [&]<class Q>() {
    for (int64_t k = 0; k < K; k += kBlockWeights) {
      V wide[kBlockWeights / W];
      Q::widen(row, k, scale_of<Q>(row, K, k), wide);
      for (int64_t i = 0; i < kBlockWeights / W; ++i) {
        const int64_t left = K - k - i * W;
        if (left >= W) {
          store(out + k + i * W, wide[i]);
        } else if (left > 0) {
          store_part(out + k + i * W, wide[i], left);
        }
      }
    }
  });
}

}  // namespace coterie::COTERIE_ISA
