// attention: softmax(scale * q @ k.T, causal, within the window) @ v over the pages of each token's sequence.
//
// A token walks its context in chunks of positions aligned to kChunk, with a running maximum (online softmax). What it adds, and in
// which order, depends on its own position and window alone; tokens of one sequence in a tile only share the widened keys and values.
#include <cmath>

#include "../math.h"
#include "../op.h"

namespace coterie::COTERIE_ISA {

namespace {

constexpr int64_t kChunk = 32;      // positions widened at once
constexpr int64_t kMaxTokens = 8;   // tokens of a tile

int64_t tile_tokens(const Attention& op) {
  const int64_t per_sequence = op.T / (op.B > 0 ? op.B : 1);
  return per_sequence < 1 ? 1 : smaller(per_sequence, kMaxTokens);
}

int64_t padded_channels(int64_t C) { return (C + 15) / 16 * 16; }

// The query heads of one kv head for the tokens of a tile: row = token in tile * G + query head in group.
struct Tile {
  int64_t G, width;  // heads of a group, padded channels
  float *queries, *sums, *maxima, *totals, *keys, *values, *scores;
};

Tile take_tile(const Attention& op, Scratch& scratch) {
  Tile tile{};
  tile.G = op.H / op.K;
  tile.width = padded_channels(op.C);
  const int64_t rows = tile_tokens(op) * tile.G;
  tile.queries = scratch.floats(rows * tile.width);
  tile.sums = scratch.floats(rows * tile.width);
  tile.maxima = scratch.floats(rows);
  tile.totals = scratch.floats(rows);
  tile.keys = scratch.floats(kChunk * tile.width);
  tile.values = scratch.floats(kChunk * tile.width);
  tile.scores = scratch.floats(kChunk + 16);
  return tile;
}

// Widen one head of C channels; the padding becomes zero.
void widen_row(bytes* at, int64_t dtype, int64_t C, int64_t width, float* out) {
  with_dtype(dtype, [&]<DType D>() {
    constexpr int64_t size = D == DType::f32 ? 4 : 2;
    int64_t c = 0;
    for (; c + W <= C; c += W) store(out + c, load_weights<D>(at + c * size));
    if (c < C) store(out + c, load_weights_part<D>(at + c * size, C - c)), c += W;
    for (; c < width; c += W) store(out + c, V{});
  });
}

void load_queries(const Attention& op, const Tile& tile, int64_t first, int64_t tokens, int64_t kv_head) {
  for (int64_t row = 0; row < tokens * tile.G; ++row) {
    const int64_t token = first + row / tile.G, head = kv_head * tile.G + row % tile.G;
    const float* q = op.q + (token * op.H + head) * op.C;
    widen_row(reinterpret_cast<bytes*>(q), static_cast<int64_t>(DType::f32), op.C, tile.width, tile.queries + row * tile.width);
    for (int64_t c = 0; c < tile.width; ++c) tile.sums[row * tile.width + c] = 0.0f;
    tile.maxima[row] = -INFINITY;
    tile.totals[row] = 0.0f;
  }
}

// scores[j] = scale * q . key j for `count` keys, N at once.
template <int N>
void score_keys(const float* q, const float* keys, int64_t width, float scale, float* scores) {
  V acc[N];
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) acc[n] = V{};
  for (int64_t c = 0; c < width; c += W) {
    const V qv = load(q + c);
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) acc[n] = fma(qv, load(keys + n * width + c), acc[n]);
  }
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) scores[n] = sum(acc[n]) * scale;
}

// sums = sums * correction + weights @ values, N vectors of channels at once.
template <int N>
void add_values(const float* weights, const float* values, int64_t count, int64_t width, float correction, float* sums) {
  V acc[N];
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) acc[n] = load(sums + n * W) * splat(correction);
  for (int64_t j = 0; j < count; ++j) {
    const V weight = splat(weights[j]);
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) acc[n] = fma(weight, load(values + j * width + n * W), acc[n]);
  }
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) store(sums + n * W, acc[n]);
}

// One query head against `count` positions that start at keys and values.
void attend(const Tile& tile, int64_t row, const float* keys, const float* values, int64_t count, float scale) {
  const float* q = tile.queries + row * tile.width;
  float* scores = tile.scores;
  int64_t j = 0;
  for (; j + 4 <= count; j += 4) score_keys<4>(q, keys + j * tile.width, tile.width, scale, scores + j);
  for (; j < count; ++j) score_keys<1>(q, keys + j * tile.width, tile.width, scale, scores + j);

  float maximum = tile.maxima[row];  // passes over NaN; its exponential brings it into the sums
  for (j = 0; j < count; ++j) maximum = scores[j] > maximum ? scores[j] : maximum;
  V total{};
  for (j = 0; j < count; j += W) {
    const V weights = exp(load_part(scores + j, smaller(W, count - j)) - splat(maximum));
    store_part(scores + j, weights, smaller(W, count - j));
    total = total + load_part(scores + j, smaller(W, count - j));
  }
  const float correction = exp(splat(tile.maxima[row] - maximum))[0];
  tile.maxima[row] = maximum;
  tile.totals[row] = tile.totals[row] * correction + sum(total);

  float* sums = tile.sums + row * tile.width;
  int64_t c = 0;
  for (; c + 4 * W <= tile.width; c += 4 * W) add_values<4>(scores, values + c, count, tile.width, correction, sums + c);
  for (; c < tile.width; c += W) add_values<1>(scores, values + c, count, tile.width, correction, sums + c);
}

int64_t first_seen(const Attention& op, int64_t token) {
  const int64_t position = op.positions[token];
  return op.window > 0 && position >= op.window ? position - op.window + 1 : 0;
}

// Tokens [first, last) are of one sequence; `row` is the tile's row of the first one.
void attend_sequence(const Attention& op, const Tile& tile, int64_t first, int64_t last, int64_t row, int64_t kv_head) {
  int64_t low = first_seen(op, first), high = op.positions[first] + 1;
  for (int64_t token = first + 1; token < last; ++token) {
    low = smaller(low, first_seen(op, token));
    high = op.positions[token] + 1 > high ? op.positions[token] + 1 : high;
  }
  const int64_t sequence = op.sequence[first];
  for (int64_t base = low / kChunk * kChunk; base < high; base += kChunk) {
    const int64_t begin = base > low ? base : low, end = smaller(base + kChunk, high);
    for (int64_t p = begin; p < end; ++p) {
      const int64_t at = (p - base) * tile.width;
      widen_row(page_address(op, sequence, p, kKey, kv_head), op.kv_dtype, op.C, tile.width, tile.keys + at);
      widen_row(page_address(op, sequence, p, kValue, kv_head), op.kv_dtype, op.C, tile.width, tile.values + at);
    }
    for (int64_t token = first; token < last; ++token) {
      const int64_t seen = first_seen(op, token);
      const int64_t from = seen > base ? seen : base, to = smaller(base + kChunk, op.positions[token] + 1);
      if (from >= to) continue;
      const int64_t at = (from - base) * tile.width;
      for (int64_t g = 0; g < tile.G; ++g)
        attend(tile, row + (token - first) * tile.G + g, tile.keys + at, tile.values + at, to - from,
               static_cast<float>(op.scale));
    }
  }
}

}  // namespace

int64_t units(const Attention& op) { return tiles(op.T, tile_tokens(op)) * op.K; }

int64_t scratch_bytes(const Attention& op) {
  const int64_t width = padded_channels(op.C), rows = tile_tokens(op) * (op.H / op.K);
  return 4 * (2 * rows * width + 2 * (rows + 16) + 2 * kChunk * width + kChunk + 32);
}

int64_t flops(const Attention& op) {  // the context is not in the shape; half of a table's reach stands for it
  return 2 * op.T * op.H * op.C * op.table_width * op.Z;
}

void run(const Attention& op, int64_t unit, Scratch& scratch) {
  const int64_t span = tile_tokens(op), token_tiles = tiles(op.T, span), kv_head = unit / token_tiles;
  const int64_t first = unit % token_tiles * span, last = smaller(op.T, first + span);
  const Tile tile = take_tile(op, scratch);
  load_queries(op, tile, first, last - first, kv_head);
  for (int64_t begin = first; begin < last;) {
    int64_t end = begin + 1;
    while (end < last && op.sequence[end] == op.sequence[begin]) ++end;
    attend_sequence(op, tile, begin, end, (begin - first) * tile.G, kv_head);
    begin = end;
  }
  for (int64_t row = 0; row < (last - first) * tile.G; ++row) {
    float* y = op.y + ((first + row / tile.G) * op.H + kv_head * tile.G + row % tile.G) * op.C;
    for (int64_t c = 0; c < op.C; ++c) y[c] = tile.sums[row * tile.width + c] / tile.totals[row];
  }
  scratch.stored((last - first) * tile.G * op.C * 4);
}

COTERIE_KERNEL(attention, Attention)

}  // namespace coterie::COTERIE_ISA
