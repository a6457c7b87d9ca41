// How attention over pages is divided into units: tiles of tokens, and spans of their contexts.
// Knows nothing about how a span is computed (attend.h).
//
// A tile is a few tokens and the query heads of one kv head. Tiles walk their contexts span by span; where no sequence
// has many tokens in a tile (decode), each span is a unit of its own: it leaves its partials in shared memory, and the
// thread that finishes a tile's last span merges them in the order of positions.
#pragma once

#include <type_traits>

#include "attend_bf16.h"
#include "op.h"

namespace coterie::COTERIE_ISA {

// The operands of any attention op: all begin with those of `attention`, for which the rest are 0.
struct Attended : Attention {
  int64_t latent;
  bytes* bias;
  int64_t bias_dtype;
  const float* buckets;
  int64_t reach;
  bool sees_all, rounded;  // rounded: queries and softmax weights are rounded to bfloat16
};

template <class Op>
inline Attended attended(const Op& op) {
  Attended all{};
  std::memcpy(static_cast<Attention*>(&all), &op, sizeof(Attention));
  if constexpr (requires { op.latent; }) all.latent = op.latent;
  if constexpr (requires { op.bias; }) {
    all.bias = op.bias, all.bias_dtype = op.bias_dtype, all.buckets = op.buckets, all.reach = op.reach;
    all.sees_all = op.window < 0;
    all.window = 0;
  }
  if (bf16_activations(all.kv_dtype)) {
    all.kv_dtype = static_cast<int64_t>(DType::bf16);
    all.rounded = kBf16Tiles && std::is_same_v<Op, Attention> && all.C <= kMaxBf16Channels;
  }
  return all;
}

// Channels of a value: the first `latent` ones of a latent key, else as many as a key has.
inline int64_t value_channels(const Attended& op) { return op.latent == 0 ? op.C : op.latent; }

inline int64_t row_width(const Attended& op, int64_t C) { return op.rounded ? padded_bf16(C) : padded_channels(C); }
inline int64_t key_width(const Attended& op) { return row_width(op, op.C); }
inline int64_t value_width(const Attended& op) { return row_width(op, value_channels(op)); }

constexpr int64_t kTileQueries = 128;         // upper bound of a tile's queries, unless one token has more
constexpr int64_t kManyUnits = 32;            // tiles are smaller where there would be fewer units
constexpr int64_t kStoredQueries = 8;         // up to this many queries of a sequence and kv head in a tile read keys and values in place
constexpr int64_t kStoredRows = 64;           // upper bound of the queries of several kv heads that are read together
constexpr int64_t kHeadsChannels = 256;       // upper bound of such heads' channels: the values of a span stay in the L2 cache
constexpr int64_t kCounters = 1024;
constexpr int64_t kSharedBytes = 16 << 20;    // address space: decode writes about G / 256 of the bytes that it reads

inline int64_t heads_per_kv(const Attended& op) { return op.H / op.K; }

inline int64_t tile_tokens(const Attended& op) {
  const int64_t max_tokens = larger(kTileQueries / heads_per_kv(op), 1);
  return smaller(larger(op.T * op.K / kManyUnits, 1), max_tokens);
}

inline int64_t partial_floats(const Attended& op) { return tiles(value_width(op), 16) * 16 + kPartialTail; }

inline int64_t spans_of_table(const Attended& op) { return tiles(op.table_width * op.Z, kSpan); }

// True if spans may be units: there is room for all partials. Whether those of a tile are depends on its sequences.
inline bool may_split(const Attended& op) {
  const int64_t counters = tiles(op.T, tile_tokens(op)) * op.K;
  const int64_t floats = op.T * op.H * spans_of_table(op) * partial_floats(op);
  return counters <= kCounters && 4 * (floats + kCounters) <= kSharedBytes;
}

// A token's own position where all of its text is in the step and `positions` holds the text's last position: that,
// less the number of tokens of its sequence that follow it.
inline int64_t own_position(const Attended& op, int64_t token) {
  const int64_t last = op.positions[token];
  int64_t inside = token, outside = smaller(token + last + 1, op.T);
  while (outside - inside > 1) {
    const int64_t middle = (inside + outside) / 2;
    (op.sequence[middle] == op.sequence[token] ? inside : outside) = middle;
  }
  return last - (inside - token);
}

// A window below 0 is bidirectional: it reaches equally far to both sides of a token.
inline int64_t first_seen(const Attended& op, int64_t token) {
  if (op.window < 0) return larger(own_position(op, token) + op.window + 1, 0);
  const int64_t position = op.positions[token];
  return op.window > 0 && position >= op.window ? position - op.window + 1 : 0;
}

inline int64_t last_seen(const Attended& op, int64_t token) {
  const int64_t last = op.positions[token];
  return op.window < 0 ? smaller(own_position(op, token) - op.window - 1, last) : last;
}

// The position of a token, for attention with biases.
inline int64_t position_of(const Attended& op, int64_t token) { return op.sees_all ? own_position(op, token) : op.positions[token]; }

// Consecutive tokens [first, last) of one sequence, and the range [low, high) of positions that they see.
struct Run {
  int64_t first, last, low, high;
};

inline Run run_of(const Attended& op, int64_t first, int64_t end) {
  Run run{first, first, first_seen(op, first), 0};
  for (; run.last < end && op.sequence[run.last] == op.sequence[first]; ++run.last) {
    run.low = smaller(run.low, first_seen(op, run.last));
    run.high = larger(run.high, last_seen(op, run.last) + 1);
  }
  return run;
}

// How many kv heads a unit reads together. Reading all of them follows the layout of pages, in which one head's runs
// are short; fewer where that shortens the longest thread's work by a fifth or more. This may depend on the number of
// threads, as no result depends on it.
inline int64_t heads_together(const Attended& op, int64_t spans, int64_t threads) {
  const int64_t rows = larger(kStoredQueries, heads_per_kv(op)), times = spans * tiles(op.T, tile_tokens(op));
  const auto longest = [&](int64_t heads) { return tiles(times * tiles(op.K, heads), threads) * heads; };
  int64_t together = larger(smaller(op.K, smaller(kHeadsChannels / op.C, kStoredRows / rows)), 1);
  for (int64_t heads = together - 1; heads > 0; --heads)
    if (5 * longest(heads) <= 4 * longest(together)) together = heads;
  return together;
}

inline bool reads_stored(const Attended& op, int64_t tokens) {
  return tokens * heads_per_kv(op) <= larger(kStoredQueries, heads_per_kv(op));
}

// What a unit works on: tokens [first, last) and `heads` kv heads. Spans [low, high) are seen by some token;
// in a split tile each of them is a unit.
struct Tile {
  int64_t first, last, kv_head, heads, low, high;
  bool split;
};

inline Tile tile_of(const Attended& op, int64_t unit, int64_t threads) {
  const int64_t tokens = tile_tokens(op), count = tiles(op.T, tokens);
  Tile tile{};
  tile.kv_head = unit % op.K;
  tile.first = (count - 1 - unit / op.K % count) * tokens;  // the last tokens of a chunk see the most: they come first
  tile.last = smaller(op.T, tile.first + tokens);
  tile.heads = 1;
  tile.low = spans_of_table(op);
  bool stored = true;
  for (int64_t token = tile.first; token < tile.last;) {
    const Run run = run_of(op, token, tile.last);
    tile.low = smaller(tile.low, run.low / kSpan);
    tile.high = larger(tile.high, tiles(run.high, kSpan));
    stored = stored && reads_stored(op, run.last - run.first);
    token = run.last;
  }
  tile.split = may_split(op) && stored && tile.high - tile.low > 1;
  if (stored && tile.high - tile.low > 1) {  // the first unit of such heads does the work of all
    const int64_t together = heads_together(op, tile.split ? tile.high - tile.low : 1, threads);
    tile.heads = tile.kv_head % together == 0 ? smaller(together, op.K - tile.kv_head) : 0;
  }
  return tile;
}

}  // namespace coterie::COTERIE_ISA
