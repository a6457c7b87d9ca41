// Tiles of tokens: the dot products of a tile with rows of a weight, biases.
// Knows nothing about ops or how work is shared out.
//
// Every dot product sums k = 0, W, 2W, ... lane by lane in one accumulator and then the lanes as a tree, or whole numbers group by group
// (whole.h), whatever the blocking: a token's result has the same bits alone, in a batch and in a chunk.
#pragma once

#include <bit>
#include <initializer_list>

#include "few.h"
#include "halves.h"
#include "panel.h"
#include "scratch.h"
#include "streams.h"
#include "vec.h"
#include "whole.h"

namespace coterie::COTERIE_ISA {

constexpr int64_t kTileTokens = 16;    // of the kernels without weights
constexpr int64_t kFewTokens = 16;     // up to so many tokens, weights are used as they are read; beyond, they are widened once
constexpr int64_t kManyTokens = 132;   // at most so many tokens in a tile
constexpr int64_t kTileRows = 32;      // rows of a weight per unit, at most
constexpr int64_t kManyBlocks = 32;    // units of few tokens are smaller where there would be fewer

// Tokens of a tile of a [T, N] result: even parts of T.
constexpr int64_t token_tile(int64_t T) {
  if (T <= kFewTokens) return kFewTokens;
  return tiles(tiles(T, tiles(T, kManyTokens)), kGroupTokens) * kGroupTokens;
}

// The part of a [T, N] result that a unit computes: `rows` rows of the weight from `row` on, and as many from `apart` rows later on, ..,
// `parts` times. Units that share tokens follow one another.
//
//   parts 1   | unit 0   | 1        | 2        | 3 |   each unit has kTileRows rows, or fewer
//   parts 3   | 0 1 2 .. | 0 1 2 .. | 0 1 2 .. | 9 |   each has some of every third of the weight, and goes on where the one before it ended:
//                                                      a thread reads three streams through its whole share. What is left over is the last unit
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

// Into so many parts do units divide a weight. Packed ones gain nothing from streams beyond a unit, as instructions fetch them.
constexpr int64_t parts_of(int64_t T, int64_t dtype) { return T > kFewTokens || is_packed(dtype) ? 1 : streams_of(T); }

constexpr int64_t rows_of_part(int64_t parts) { return kTileRows / parts / 8 * 8; }

// Rows of each part that are a unit's: of narrow weights half as many, so that 8 or 16 threads have about as much to do each. No
// fewer: a unit costs some 40 ns besides its products, which two threads would feel.
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

// Floats between tokens in a scratch tile: an odd number of lines for many tokens, so that few of them share a place in the caches.
constexpr int64_t tile_stride(int64_t T, int64_t width) { return T <= kFewTokens ? width : (tiles(width, 16) | 1) * 16; }

constexpr int64_t bytes_of(int64_t floats) { return static_cast<int64_t>(padded(static_cast<size_t>(floats) * 4)); }

// Bytes of a scratch tile of a token tile's rows of `width` floats.
constexpr int64_t tile_bytes(int64_t T, int64_t width) { return bytes_of(token_tile(T) * tile_stride(T, width)); }

inline float* take_tile(Scratch& scratch, int64_t T, int64_t width) { return scratch.floats(token_tile(T) * tile_stride(T, width)); }

// Zeros behind a row of `width` floats in a scratch tile.
inline void pad_row(float* row, int64_t T, int64_t width) {
  for (int64_t c = width; c < tile_stride(T, width); ++c) row[c] = 0.0f;
}

// Whatever type the weights have: they may be of several.
constexpr int64_t work_panel_floats(int64_t K) { return larger(panel_floats(K), kWholePanelFloats); }
constexpr int64_t work_sums_floats(int64_t T, int64_t K) { return larger(sums_floats(token_tile(T), K), whole_sums_floats(token_tile(T))); }

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

// Calls `body` with the place of each bit that is set. Most ops have one, so that no loop over all types is paid for.
template <class Body>
constexpr void each_set(uint32_t bits, Body body) {
  for (; bits != 0; bits &= bits - 1) body(std::countr_zero(bits));
}

// Forms of a tile's tokens beside rows that the weights of an op read: records for packed types (whole_record.h), a bit for each, tokens
// side by side for kernels of few tokens, or rounded to bfloat16 (halves.h).
struct Forms {
  uint32_t records = 0;
  bool beside = false, rounded = false;
  constexpr bool any() const { return records != 0 || beside || rounded; }
};

template <class... DTypes>
constexpr Forms forms_of(int64_t T, DTypes... dtypes) {
  const auto bit = [](int64_t dtype) { return is_packed(dtype) ? uint32_t{1} << packed_index(dtype) : 0; };
  const bool as_they_are = ((!is_packed(dtypes) && !meets_bf16(dtypes)) || ...);
  return {(bit(dtypes) | ...), T > 1 && T <= kFewTokens && as_they_are, (meets_bf16(dtypes) || ...)};
}

// The tokens of a tile in each form that is wanted; null for others. `many`: a panel meets them.
struct Copies {
  uint32_t wanted = 0;
  bool many = false;
  uint8_t* records[kPackedTypes] = {};
  float* beside = nullptr;
  float* rounded = nullptr;

  void put(int64_t token, int64_t tokens, const float* x, int64_t K) const {
    each_set(wanted, [&](int i) { put_records(x, K, packed_type(i), token, tokens, many, records[i]); });
    if (beside != nullptr) put_beside(x, K, token, tokens, beside);
    if (rounded != nullptr) put_rounded(x, K, token, tokens, many, rounded);
  }
};

constexpr int64_t records_floats(int64_t dtype, int64_t T, int64_t K) {
  return tile_records_bytes(dtype, token_tile(T), K, T > kFewTokens) / 4;
}

constexpr int64_t tile_tokens(int64_t T) { return T <= kFewTokens ? T : token_tile(T); }

constexpr int64_t copies_bytes(const Forms& forms, int64_t T, int64_t K) {
  int64_t size = forms.beside ? bytes_of(beside_floats(T, K)) : 0;
  if (forms.rounded) size += bytes_of(rounded_floats(tile_tokens(T), K, T > kFewTokens));
  each_set(forms.records, [&](int i) { size += bytes_of(records_floats(packed_type(i), T, K)); });
  return size;
}

inline Copies take_copies(Scratch& scratch, const Forms& forms, int64_t T, int64_t K) {
  Copies copies{forms.records, T > kFewTokens};
  each_set(forms.records, [&](int i) {
    copies.records[i] = reinterpret_cast<uint8_t*>(scratch.floats(records_floats(packed_type(i), T, K)));
  });
  if (forms.beside) copies.beside = scratch.floats(beside_floats(T, K));
  if (forms.rounded) copies.rounded = scratch.floats(rounded_floats(tile_tokens(T), K, T > kFewTokens));
  return copies;
}

// Tokens of a unit as dot_tile reads them: where a weight's type reads another form, that, and not `x`.
struct Input {
  const float* x;
  int64_t stride;
  Copies copies = {};
  // As streams.h reads them.
  const float* few(int64_t tokens, int64_t dtype) const {
    if (meets_bf16(dtype)) return copies.rounded;
    return tokens == 1 ? x : copies.beside;
  }
};

constexpr int64_t input_bytes(int64_t T, int64_t K, const Forms& forms) {
  if (forms.any()) return copies_bytes(forms, T, K);
  return T <= kFewTokens ? 0 : tile_bytes(T, K);
}

// What one weight reads. Few tokens where they are or side by side; many in a scratch tile; records for packed weights. A thread keeps
// what it copied for its next units.
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

// A tile of `tokens` x N dot products with N rows of K weights that start at `w`.
inline void dot_tile(const Input& in, int64_t tokens, bytes* w, int64_t dtype, int64_t N, int64_t K, float* out, int64_t out_stride,
                     const Work& work) {
  if (is_packed(dtype)) return whole_tile(in.copies.records[packed_index(dtype)], tokens, w, dtype, N, K, out, out_stride, work);
  const bool rounded = meets_bf16(dtype);
  if (kHalves && rounded) return halves_tile(in.copies.rounded, tokens, w, N, K, out, out_stride, work.sums);
  if (work.panel != nullptr) {
    const float* many = rounded ? in.copies.rounded : in.x;
    return panel_tile(many, rounded ? rounded_stride(K) : in.stride, tokens, w, dtype, N, K, out, out_stride, work);
  }
  few_tile(in.few(tokens, dtype), tokens, w, dtype, N, K, out, out_stride);
}

// `each` rows of every stream with few tokens, as dots_along of streams.h.
template <int Streams>
inline void tile_along(const Input& in, int64_t tokens, int64_t dtype, const Rows<Streams>& rows, int64_t each, int64_t K, float* out,
                       int64_t out_stride, int64_t out_step) {
  if constexpr (kHalves && Streams == 4)
    if (meets_bf16(dtype)) return halves_along(in.copies.rounded, tokens, rows, each, K, out, out_stride, out_step);
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

// A weight of an op, its bias or null, and what results are multiplied by.
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

// out *= scale over a block. By itself, as most products have none and their loops are tuned.
[[gnu::noinline, gnu::cold]] inline void scale_by(double scale, const Block& block, float* out, int64_t out_stride, int64_t out_step) {
  const float factor = static_cast<float>(scale);
  for (int64_t t = 0; t < block.tokens; ++t)
    for (int64_t part = 0; part < block.parts; ++part) {
      float* row = out + t * out_stride + part * out_step;
      for (int64_t n = 0; n < block.rows; ++n) row[n] *= factor;
    }
}

// out[t * out_stride + part * out_step + n] = (dot(token t, row n of a part of the block) + bias) * scale, for a block in
// parts_of() parts.
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
