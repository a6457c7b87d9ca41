// Dot products of many tokens: a block of weights is widened once, into a panel, and then used for all tokens of a tile.
// Knows nothing about ops or how work is shared out.
//
//   columns      0 .. c .. 2c .. K     one block at a time, so that a group of the panel and the tokens it is used for stay in the
//   panel        rows x c              L1 cache; between blocks the W partial sums of every dot product are kept in memory
//   groups       4 rows of the panel, a vector of each in turn
//
// A dot product adds the same terms in the same order as in tile.h, so it is bit-identical.
#pragma once

#include "panel_work.h"
#include "scratch.h"
#include "streams.h"

namespace coterie::COTERIE_ISA {

constexpr int64_t kBlockRows = 32;             // by kBlockColumns of float32: fits the L2 cache
constexpr int64_t kGroupRows = 4;
constexpr int kGroupTokens = kRegisters == 32 ? 6 : 3;   // by kGroupRows: as many accumulators as registers allow
constexpr int64_t kBlockColumns = 576;          // by 4 rows and 6 tokens of float32: 22.5 KiB, for the L1 cache

constexpr int64_t tiles(int64_t count, int64_t tile) { return (count + tile - 1) / tile; }
constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Columns of a block: K divided evenly, in multiples of 32.
constexpr int64_t block_columns(int64_t K) { return tiles(tiles(K, tiles(K, kBlockColumns)), 32) * 32; }

constexpr int64_t panel_floats(int64_t K) { return kBlockRows * block_columns(K); }
constexpr int64_t sums_floats(int64_t tokens, int64_t K) { return K > kBlockColumns ? tokens * kBlockRows * W : 0; }

// Prefetches the lines of the next block's rows into the L2 cache, in order, spread evenly over `calls` calls.
class NextBlock {
 public:
  NextBlock(bytes* next, int64_t stride, int64_t rows, int64_t row_bytes, int64_t calls)
      : row_(next), stride_(stride), lines_(tiles(row_bytes, static_cast<int64_t>(kLine))), all_(rows * lines_), calls_(calls) {}

  void one_call() {
    for (due_ += all_; due_ >= calls_; due_ -= calls_) {
      fetch_ahead(row_ + line_ * static_cast<int64_t>(kLine));
      if (++line_ == lines_) line_ = 0, row_ += stride_;
    }
  }

 private:
  bytes* row_;
  int64_t stride_, lines_, all_, calls_;
  int64_t line_ = 0, due_ = 0;
};

// `tokens` x N dot products with the N rows of K weights at `w`;
// rows of `x` are zero-padded to a multiple of 16 columns.
void panel_tile(const float* x, int64_t x_stride, int64_t tokens, bytes* w, int64_t dtype, int64_t N, int64_t K,
                float* out, int64_t out_stride, const Work& work);

}  // namespace coterie::COTERIE_ISA
