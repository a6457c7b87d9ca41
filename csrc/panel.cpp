// A translation unit of its own, once per instruction set: every product of many tokens runs it.
#include "panel.h"

namespace coterie::COTERIE_ISA {

namespace {

// Widens columns [first, first + count) of a row into every kGroupRows-th vector of `out`; the last is zero-padded.
void widen_columns(bytes* row, int64_t dtype, int64_t first, int64_t count, float* out) {
  constexpr int64_t next = kGroupRows * W;
  with_dtype(dtype, [&]<DType D>() {
    constexpr int64_t size = size_of(static_cast<int64_t>(D));
    int64_t k = 0;
    for (; k + W <= count; k += W, out += next) store(out, load_weights<D>(row + (first + k) * size));
    if (k < count) store(out, load_weights_part<D>(row + (first + k) * size, count - k));
  });
}

// M tokens times one group of the panel. `sums` holds the partial sums of earlier blocks;
// the last block writes the dot products to `out`.
template <int M>
[[gnu::noinline]] void group_dots(const float* x, int64_t x_stride, const float* panel, int64_t steps, float* sums, bool first, bool last,
                                 int64_t rows, float* out, int64_t out_stride) {
  V acc[M][kGroupRows];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int n = 0; n < kGroupRows; ++n) acc[m][n] = first ? V{} : load(sums + (m * kGroupRows + n) * W);
  for (int64_t step = 0; step < steps; ++step, x += W, panel += kGroupRows * W) {
    V xv[M];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) xv[m] = pin_in_register(load(x + m * x_stride));
#pragma GCC unroll 8
    for (int n = 0; n < kGroupRows; ++n) {
      const V wv = pin_in_register(load(panel + n * W));
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) acc[m][n] = fma(xv[m], wv, acc[m][n]);
    }
  }
  if (!last) {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
      for (int n = 0; n < kGroupRows; ++n) store(sums + (m * kGroupRows + n) * W, acc[m][n]);
    return;
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    float four[kGroupRows];
    float* at = rows < kGroupRows ? four : out + m * out_stride;
    sum4(acc[m][0], acc[m][1], acc[m][2], acc[m][3], at);
    if (rows < kGroupRows)
      for (int64_t n = 0; n < rows; ++n) out[m * out_stride + n] = four[n];
  }
}

// One block of columns of up to kBlockRows rows, for all tokens.
struct PanelBlock {
  const float* x;
  int64_t x_stride, rows, steps;
  bool first, last;
  float* out;
  int64_t out_stride;
};

void panel_group(const PanelBlock& b, int64_t token, int64_t tokens, const Work& work, NextBlock& next_block) {
  for (int64_t n = 0; n < b.rows; n += kGroupRows) {
    next_block.one_call();
    const float* panel = work.panel + n * b.steps * W;
    float* sums = work.sums == nullptr ? nullptr : work.sums + (token * kBlockRows + n * kGroupTokens) * W;
    const float* x = b.x + token * b.x_stride;
    float* out = b.out + token * b.out_stride + n;
    const int64_t rows = b.rows - n;
    const auto run = [&]<int M>() { group_dots<M>(x, b.x_stride, panel, b.steps, sums, b.first, b.last, rows, out, b.out_stride); };
    switch (tokens) {
      case 1: run.template operator()<1>(); break;
      case 2: run.template operator()<2>(); break;
      case 3: run.template operator()<3>(); break;
      case 4: run.template operator()<(kGroupTokens > 3 ? 4 : 3)>(); break;
      case 5: run.template operator()<(kGroupTokens > 3 ? 5 : 3)>(); break;
      default: run.template operator()<kGroupTokens>(); break;
    }
  }
}

}  // namespace

void panel_tile(const float* x, int64_t x_stride, int64_t tokens, bytes* w, int64_t dtype, int64_t N, int64_t K,
                float* out, int64_t out_stride, const Work& work) {
  const int64_t columns = block_columns(K), stride = row_bytes(dtype, K);
  for (int64_t row = 0; row < N; row += kBlockRows) {
    const int64_t rows = smaller(kBlockRows, N - row);
    for (int64_t k = 0; k < K; k += columns) {
      const int64_t count = smaller(columns, K - k), steps = tiles(count, W);
      for (int64_t n = 0; n < tiles(rows, kGroupRows) * kGroupRows; ++n) {
        float* at = work.panel + (n / kGroupRows * kGroupRows * steps + n % kGroupRows) * W;
        widen_columns(w + (row + smaller(n, rows - 1)) * stride, dtype, k, count, at);  // a missing row is computed and discarded
      }
      const bool last = k + columns >= K;
      bytes* next = last ? w + (row + kBlockRows) * stride : w + row * stride + stride * (k + columns) / K;
      const int64_t next_bytes = stride * smaller(columns, last ? K : K - k - columns) / K;
      NextBlock next_block(next, stride, rows, next_bytes, tiles(rows, kGroupRows) * tiles(tokens, kGroupTokens));
      const PanelBlock block{x + k, x_stride, rows, steps, k == 0, last, out + row, out_stride};
      for (int64_t t = 0; t < tokens; t += kGroupTokens) panel_group(block, t, smaller(kGroupTokens, tokens - t), work, next_block);
    }
  }
}

}  // namespace coterie::COTERIE_ISA
