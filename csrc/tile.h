// Tiles of tokens: their dot products with the rows of a weight, and biases.
// Knows nothing about ops or how work is shared out.
//
// Whatever the blocking, a dot product adds k = 0, W, 2W, ... lane by lane in one accumulator and then the lanes as a
// tree, or it adds integers group by group (integer_products.h).
// So a token's result is bit-identical alone, in a batch and in a prefill chunk.
#pragma once

#include <bit>
#include <initializer_list>

#include "bf16_products.h"
#include "few.h"
#include "integer_products.h"
#include "panel.h"
#include "scratch.h"
#include "streams.h"
#include "vec.h"

namespace coterie::COTERIE_ISA {

constexpr int64_t kTileTokens = 16;    // for kernels without weights
constexpr int64_t kFewTokens = 16;     // up to this many tokens, weights are used as they are read; above it they are first widened into a panel
constexpr int64_t kManyTokens = 132;   // upper bound of a tile's tokens
constexpr int64_t kTileRows = 32;      // upper bound of a unit's weight rows
constexpr int64_t kManyBlocks = 32;    // with fewer units than this, those of few tokens are halved

// Tokens in a tile of a [T, N] result: T divided evenly, in multiples of kGroupTokens.
constexpr int64_t token_tile(int64_t T) {
  if (T <= kFewTokens) return kFewTokens;
  return tiles(tiles(T, tiles(T, kManyTokens)), kGroupTokens) * kGroupTokens;
}

// A unit's part of a [T, N] result: `rows` weight rows from `row` on, as many from `row + apart` on, and so on, `parts`
// times. Units of the same tokens follow one another.
//
//   parts 1   | unit 0   | 1        | 2        | 3 |   each unit has kTileRows rows, or fewer
//   parts 3   | 0 1 2 .. | 0 1 2 .. | 0 1 2 .. | 9 |   each has some rows of every third of the weight, after those of the unit
//                                                      before it: a thread reads three streams through its whole share. The last
//                                                      unit is the remainder
struct Block {
  int64_t token, tokens, row, rows, parts = 1, apart = 0;
  constexpr int64_t values() const { return tokens * rows * parts; }
};

inline int64_t block_units(int64_t T, int64_t N, int64_t rows) { return tiles(T, token_tile(T)) * tiles(N, rows); }

inline Block block_of(int64_t unit, int64_t T, int64_t N, int64_t rows) {
  const int64_t row_tiles = tiles(N, rows), tile = token_tile(T);
  const int64_t token = unit / row_tiles * tile, row = unit % row_tiles * rows;
  return {token, smaller(tile, T - token), row, smaller(rows, N - row)};
}

// Into how many parts units divide a weight. Packed weights are prefetched by instructions, and gain nothing from
// streams that are longer than a unit.
constexpr int64_t parts_of(int64_t T, int64_t dtype) { return T > kFewTokens || is_packed(dtype) ? 1 : streams_of(T); }

constexpr int64_t rows_of_part(int64_t parts) { return kTileRows / parts / 8 * 8; }

// A unit's rows of each part: half as many for narrow weights, to balance the load of 8 or 16 threads. Not fewer: a
// unit costs some 40 ns besides its products, which would show with two threads.
constexpr int64_t rows_of_unit(int64_t T, int64_t N, int64_t parts) {
  const int64_t rows = rows_of_part(parts);
  return T <= kFewTokens && N / parts / rows < kManyBlocks ? rows / 2 : rows;
}

inline int64_t units_in_parts(int64_t T, int64_t N, int64_t parts, int64_t rows) {
  return block_units(T, N / parts, rows) + (T == 0 || N % parts == 0 ? 0 : 1);
}

inline int64_t units_in_parts(int64_t T, int64_t N, int64_t parts) { return units_in_parts(T, N, parts, rows_of_unit(T, N, parts)); }

inline Block block_in_parts(int64_t unit, int64_t T, int64_t N, int64_t parts, int64_t rows) {
  const int64_t apart = N / parts;
  if (unit == block_units(T, apart, rows)) return {0, T, apart * parts, N % parts};
  Block block = block_of(unit, T, apart, rows);
  block.parts = parts, block.apart = apart;
  return block;
}

inline Block block_in_parts(int64_t unit, int64_t T, int64_t N, int64_t parts) {
  return block_in_parts(unit, T, N, parts, rows_of_unit(T, N, parts));
}

// Floats from one token to the next in a scratch tile: for many tokens an odd number of cache lines,
// so that few of them map to the same cache set.
constexpr int64_t tile_stride(int64_t T, int64_t width) { return T <= kFewTokens ? width : (tiles(width, 16) | 1) * 16; }

constexpr int64_t bytes_of(int64_t floats) { return static_cast<int64_t>(padded(static_cast<size_t>(floats) * 4)); }

// Bytes of a scratch tile of a token tile's rows of `width` floats.
constexpr int64_t tile_bytes(int64_t T, int64_t width) { return bytes_of(token_tile(T) * tile_stride(T, width)); }

inline float* take_tile(Scratch& scratch, int64_t T, int64_t width) { return scratch.floats(token_tile(T) * tile_stride(T, width)); }

// Zeros after a row of `width` floats in a scratch tile.
inline void pad_row(float* row, int64_t T, int64_t width) {
  for (int64_t c = width; c < tile_stride(T, width); ++c) row[c] = 0.0f;
}

// Enough for every type of weights, as an op's may be of several.
constexpr int64_t work_panel_floats(int64_t K) { return larger(panel_floats(K), kIntegerPanelFloats); }
constexpr int64_t work_sums_floats(int64_t T, int64_t K) { return larger(sums_floats(token_tile(T), K), integer_sums_floats(token_tile(T))); }

constexpr int64_t work_bytes(int64_t T, int64_t K) {
  return T <= kFewTokens ? 0 : bytes_of(work_panel_floats(K)) + bytes_of(work_sums_floats(T, K));
}

inline Work take_work(Scratch& scratch, int64_t T, int64_t K) {
  if (T <= kFewTokens) return {nullptr, nullptr};
  float* panel = scratch.floats(work_panel_floats(K));
  return {panel, scratch.floats(work_sums_floats(T, K))};
}

constexpr int kPackedTypes = 11;
constexpr int64_t packed_type(int64_t index) { return static_cast<int64_t>(DType::q8) + index; }
constexpr int64_t packed_index(int64_t dtype) { return dtype - packed_type(0); }

// Calls `body` with the index of each bit that is set. Most ops set one, and need not pay for a loop over all types.
template <class Body>
constexpr void each_set(uint32_t bits, Body body) {
  for (; bits != 0; bits &= bits - 1) body(std::countr_zero(bits));
}

// Formats, besides plain rows, in which an op's weights read a tile's tokens: records for packed types (integer_record.h;
// a bit per type), interleaved for kernels of few tokens (streams.h), or rounded to bfloat16 (bf16_products.h).
struct Forms {
  uint32_t records = 0;
  bool interleaved = false, rounded = false;
  constexpr bool any() const { return records != 0 || interleaved || rounded; }
};

template <class... DTypes>
constexpr Forms forms_of(int64_t T, DTypes... dtypes) {
  const auto bit = [](int64_t dtype) { return is_packed(dtype) ? uint32_t{1} << packed_index(dtype) : 0; };
  const bool as_they_are = ((!is_packed(dtypes) && !bf16_activations(dtypes)) || ...);
  return {(bit(dtypes) | ...), T > 1 && T <= kFewTokens && as_they_are, (bf16_activations(dtypes) || ...)};
}

// A tile's tokens in each format that is needed; null for the others. `many`: they are multiplied by a panel.
struct Copies {
  uint32_t wanted = 0;
  bool many = false;
  uint8_t* records[kPackedTypes] = {};
  float* interleaved = nullptr;
  float* rounded = nullptr;

  void put(int64_t token, int64_t tokens, const float* x, int64_t K) const {
    each_set(wanted, [&](int i) { put_records(x, K, packed_type(i), token, tokens, many, records[i]); });
    if (interleaved != nullptr) interleave(x, K, token, tokens, interleaved);
    if (rounded != nullptr) put_rounded(x, K, token, tokens, many, rounded);
  }
};

constexpr int64_t records_floats(int64_t dtype, int64_t T, int64_t K) {
  return tile_records_bytes(dtype, token_tile(T), K, T > kFewTokens) / 4;
}

constexpr int64_t tile_tokens(int64_t T) { return T <= kFewTokens ? T : token_tile(T); }

constexpr int64_t copies_bytes(const Forms& forms, int64_t T, int64_t K) {
  int64_t size = forms.interleaved ? bytes_of(interleaved_floats(T, K)) : 0;
  if (forms.rounded) size += bytes_of(rounded_floats(tile_tokens(T), K, T > kFewTokens));
  each_set(forms.records, [&](int i) { size += bytes_of(records_floats(packed_type(i), T, K)); });
  return size;
}

inline Copies take_copies(Scratch& scratch, const Forms& forms, int64_t T, int64_t K) {
  Copies copies{forms.records, T > kFewTokens};
  each_set(forms.records, [&](int i) {
    copies.records[i] = reinterpret_cast<uint8_t*>(scratch.floats(records_floats(packed_type(i), T, K)));
  });
  if (forms.interleaved) copies.interleaved = scratch.floats(interleaved_floats(T, K));
  if (forms.rounded) copies.rounded = scratch.floats(rounded_floats(tile_tokens(T), K, T > kFewTokens));
  return copies;
}

// A unit's tokens as dot_tile reads them: `x`, or one of `copies` for the weight types that need another format.
struct Input {
  const float* x;
  int64_t stride;
  Copies copies = {};
  // In the format of streams.h.
  const float* few(int64_t tokens, int64_t dtype) const {
    if (bf16_activations(dtype)) return copies.rounded;
    return tokens == 1 ? x : copies.interleaved;
  }
};

constexpr int64_t input_bytes(int64_t T, int64_t K, const Forms& forms) {
  if (forms.any()) return copies_bytes(forms, T, K);
  return T <= kFewTokens ? 0 : tile_bytes(T, K);
}

// The input of one weight: few tokens in place or interleaved, many in a scratch tile, records for packed weights. A
// thread keeps its copies for its next units.
inline Input take_input(Scratch& scratch, const float* x, const Block& block, int64_t T, int64_t K, const Forms& forms) {
  if (forms.any()) {
    const Copies copies = take_copies(scratch, forms, T, K);
    if (!scratch.holds(block.token))
      for (int64_t t = 0; t < block.tokens; ++t) copies.put(t, block.tokens, x + (block.token + t) * K, K);
    return {x + block.token * K, K, copies};
  }
  if (T <= kFewTokens) return {x + block.token * K, K};
  const int64_t stride = tile_stride(T, K);
  float* tile = take_tile(scratch, T, K);
  if (!scratch.holds(block.token)) {
    for (int64_t t = 0; t < block.tokens; ++t) {
      std::memcpy(tile + t * stride, x + (block.token + t) * K, static_cast<size_t>(K) * sizeof(float));
      pad_row(tile + t * stride, T, K);
    }
  }
  return {tile, stride};
}

// `tokens` x N dot products with the N rows of K weights at `w`.
inline void dot_tile(const Input& in, int64_t tokens, bytes* w, int64_t dtype, int64_t N, int64_t K, float* out, int64_t out_stride,
                     const Work& work) {
  if (is_packed(dtype)) return integer_tile(in.copies.records[packed_index(dtype)], tokens, w, dtype, N, K, out, out_stride, work);
  const bool rounded = bf16_activations(dtype);
  if (kBf16Tiles && rounded) return bf16_tile(in.copies.rounded, tokens, w, N, K, out, out_stride, work.sums);
  if (work.panel != nullptr) {
    const float* many = rounded ? in.copies.rounded : in.x;
    return panel_tile(many, rounded ? rounded_stride(K) : in.stride, tokens, w, dtype, N, K, out, out_stride, work);
  }
  few_tile(in.few(tokens, dtype), tokens, w, dtype, N, K, out, out_stride);
}

// Few tokens times `each` rows of every stream, like dots_along of streams.h.
template <int Streams>
inline void tile_along(const Input& in, int64_t tokens, int64_t dtype, const Rows<Streams>& rows, int64_t each, int64_t K, float* out,
                       int64_t out_stride, int64_t out_step) {
  if constexpr (kBf16Tiles && Streams == 4)
    if (bf16_activations(dtype)) return bf16_along(in.copies.rounded, tokens, rows, each, K, out, out_stride, out_step);
  few_along(in.few(tokens, dtype), tokens, dtype, rows, each, K, out, out_stride, out_step);
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

// A weight of an op, its bias or null, and the factor of its results.
struct Weight {
  bytes* rows;
  int64_t dtype;
  bytes* bias;
  int64_t bias_dtype;
  double scale = 1.0;
};

inline void add_bias(const Weight& weight, const Block& block, float* out, int64_t out_stride, int64_t out_step) {
  for (int64_t part = 0; part < block.parts; ++part)
    add_bias(out + part * out_step, out_stride, block.tokens, weight.bias, weight.bias_dtype, block.row + part * block.apart, block.rows);
}

// out *= scale over a block. Out of line: most products have no scale, and their loops are tuned.
[[gnu::noinline, gnu::cold]] inline void scale_by(double scale, const Block& block, float* out, int64_t out_stride, int64_t out_step) {
  const float factor = static_cast<float>(scale);
  for (int64_t t = 0; t < block.tokens; ++t)
    for (int64_t part = 0; part < block.parts; ++part) {
      float* row = out + t * out_stride + part * out_step;
      for (int64_t n = 0; n < block.rows; ++n) row[n] *= factor;
    }
}

// out[t * out_stride + part * out_step + n] = (dot(token t, row n of a part of the block) + bias) * scale,
// for a block in parts_of() parts.
inline void linear_block(const Input& in, const Block& block, const Weight& weight, int64_t K, float* out, int64_t out_stride,
                         int64_t out_step, const Work& work) {
  bytes* w = weight_row(weight.rows, weight.dtype, K, block.row);
  if (block.parts == 1) {
    dot_tile(in, block.tokens, w, weight.dtype, block.rows, K, out, out_stride, work);
  } else {
    const int64_t apart = block.apart * row_bytes(weight.dtype, K);
    with_streams(block.tokens, [&]<int Streams>() {
      tile_along(in, block.tokens, weight.dtype, rows_apart<Streams>(w, apart), block.rows, K, out, out_stride, out_step);
    });
  }
  add_bias(weight, block, out, out_stride, out_step);
  if (weight.scale != 1.0) scale_by(weight.scale, block, out, out_stride, out_step);
}

}  // namespace coterie::COTERIE_ISA
