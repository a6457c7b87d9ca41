// attention: softmax(scale * q @ k.T, causal, within the window) @ v over the pages of each token's sequence.
//
// A tile is a few tokens and the query heads of one kv head. Tiles walk their contexts span after span; where no sequence has many
// tokens in a tile (decode), spans are units of their own: each leaves its partials in shared memory, and whoever finishes a tile's
// last span joins them in the order of positions. The arithmetic is attend.h's in both cases, so the bits are the same.
#include "../attend.h"
#include "../op.h"

#include <atomic>

namespace coterie::COTERIE_ISA {

namespace {

constexpr int64_t kTileQueries = 128;         // queries of a tile, or one token's
constexpr int64_t kManyUnits = 32;            // tiles are smaller where there would be fewer
constexpr int64_t kStoredQueries = 8;         // of one sequence in a tile: up to so many read keys and values as they lie
constexpr int64_t kCounters = 1024;
constexpr int64_t kSharedBytes = 16 << 20;    // address space; what decode writes of it is about G / 256 of the bytes that it reads

int64_t heads_per_kv(const Attention& op) { return op.H / op.K; }

int64_t tile_tokens(const Attention& op) {
  const int64_t most = larger(kTileQueries / heads_per_kv(op), 1);
  return smaller(larger(op.T * op.K / kManyUnits, 1), most);
}

int64_t partial_floats(const Attention& op) { return tiles(op.C, 16) * 16 + kPartialTail; }

int64_t spans_of_table(const Attention& op) { return tiles(op.table_width * op.Z, kSpan); }

// Spans may be units: the shape has room for all partials. Whether a tile's are, its sequences decide.
bool may_split(const Attention& op) {
  const int64_t counters = tiles(op.T, tile_tokens(op)) * op.K;
  const int64_t floats = op.T * op.H * spans_of_table(op) * partial_floats(op);
  return counters <= kCounters && 4 * (floats + kCounters) <= kSharedBytes;
}

int64_t first_seen(const Attention& op, int64_t token) {
  const int64_t position = op.positions[token];
  return op.window > 0 && position >= op.window ? position - op.window + 1 : 0;
}

// Tokens [first, last) of one sequence, and the positions [low, high) that they see between them.
struct Run {
  int64_t first, last, low, high;
};

Run run_of(const Attention& op, int64_t first, int64_t end) {
  Run run{first, first, first_seen(op, first), 0};
  for (; run.last < end && op.sequence[run.last] == op.sequence[first]; ++run.last) {
    run.low = smaller(run.low, first_seen(op, run.last));
    run.high = larger(run.high, op.positions[run.last] + 1);
  }
  return run;
}

// What a unit works on and with.
struct Tile {
  int64_t first, last, kv_head, G, width;
  int64_t low, high;  // spans that some token sees
  bool split;
  float *queries, *states, *partials, *scores, *keys, *values;
};

Tile take_tile(const Attention& op, int64_t unit, Scratch& scratch) {
  Tile tile{};
  const int64_t tokens = tile_tokens(op), count = tiles(op.T, tokens);
  tile.kv_head = unit % op.K;
  tile.first = (count - 1 - unit / op.K % count) * tokens;  // the last tokens of a chunk see most: they come first
  tile.last = smaller(op.T, tile.first + tokens);
  tile.G = heads_per_kv(op);
  tile.width = padded_channels(op.C);
  tile.low = spans_of_table(op);
  int64_t most = 0;
  for (int64_t token = tile.first; token < tile.last;) {
    const Run run = run_of(op, token, tile.last);
    tile.low = smaller(tile.low, run.low / kSpan);
    tile.high = larger(tile.high, tiles(run.high, kSpan));
    most = larger(most, run.last - run.first);
    token = run.last;
  }
  tile.split = may_split(op) && tile.high - tile.low > 1 && most * tile.G <= larger(kStoredQueries, tile.G);
  const int64_t rows = larger(kTileQueries, tile.G);
  tile.queries = scratch.floats(rows * tile.width);
  tile.states = scratch.floats(rows * partial_floats(op));
  tile.partials = scratch.floats(kBlockQueries * partial_floats(op));
  tile.scores = scratch.floats(kBlockQueries * kSpan);
  tile.keys = scratch.floats(kSpan * tile.width);
  tile.values = scratch.floats(kSpan * tile.width);
  return tile;
}

// Where the partials of split tiles are: counters of finished spans, then a partial per (token, head, span).
std::atomic<int32_t>& finished_spans(const Attention& op, const Tile& tile, const Scratch& scratch) {
  return reinterpret_cast<std::atomic<int32_t>*>(scratch.shared())[tile.first / tile_tokens(op) * op.K + tile.kv_head];
}

float* shared_partial(const Attention& op, const Scratch& scratch, int64_t token, int64_t head, int64_t span) {
  float* all = reinterpret_cast<float*>(scratch.shared()) + kCounters;
  return all + ((token * op.H + head) * spans_of_table(op) + span) * partial_floats(op);
}

// Point at the keys and values of positions [first, last) of a span, page by page.
void find_span(const Attention& op, int64_t sequence, int64_t kv_head, int64_t base, int64_t first, int64_t last, Span& span) {
  const int64_t row_bytes = op.C * size_of(op.kv_dtype), to_value = op.K * op.Z * row_bytes;
  for (int64_t j = first; j < last;) {
    bytes* key = page_address(op, sequence, base + j, kKey, kv_head);
    for (const int64_t end = smaller(last, j + op.Z - (base + j) % op.Z); j < end; ++j, key += row_bytes) {
      span.keys[j] = key;
      span.values[j] = key + to_value;
    }
  }
  for (int64_t j = first / W * W; j < first; ++j) span.keys[j] = span.keys[first];
  for (int64_t j = last; j % W != 0; ++j) span.keys[j] = span.keys[last - 1];
}

void load_queries(const Attention& op, const Tile& tile) {
  for (int64_t row = 0; row < (tile.last - tile.first) * tile.G; ++row) {
    const int64_t token = tile.first + row / tile.G, head = tile.kv_head * tile.G + row % tile.G;
    const float* q = op.q + (token * op.H + head) * op.C;
    float* padded = tile.queries + row * tile.width;
    std::memcpy(padded, q, static_cast<size_t>(op.C) * sizeof(float));
    for (int64_t c = op.C; c < tile.width; ++c) padded[c] = 0.0f;
  }
}

// One span of the tokens of one sequence.
void attend_span(const Attention& op, const Tile& tile, const Run& run, int64_t number, Scratch& scratch) {
  const int64_t base = number * kSpan, G = tile.G;
  const int64_t low = larger(run.low - base, 0), high = smaller(run.high - base, kSpan);
  if (low >= high) return;
  Span span{};
  find_span(op, op.sequence[run.first], tile.kv_head, base, low, high, span);
  Source from{&span, nullptr, op.kv_dtype, op.kv_dtype, op.C, tile.width};
  if ((run.last - run.first) * G > larger(kStoredQueries, G)) {
    copy_span(span, op.kv_dtype, low, high, op.C, tile.width, tile.keys, tile.values);
    from.copy = tile.keys;
    from.values_dtype = static_cast<int64_t>(DType::f32);
  }
  Query block[kBlockQueries];
  float* states[kBlockQueries];  // to join the partial with, or null
  int64_t count = 0;
  const auto finish = [&] {
    attend(from, block, count, static_cast<float>(op.scale), tile.scores);
    for (int64_t i = 0; i < count; ++i)
      if (states[i] != nullptr) join(states[i], block[i].partial, tile.width);
    count = 0;
  };
  for (int64_t row = (run.first - tile.first) * G; row < (run.last - tile.first) * G; ++row) {
    const int64_t token = tile.first + row / G, head = tile.kv_head * G + row % G, seen = first_seen(op, token);
    const int64_t first = larger(seen - base, 0), last = smaller(op.positions[token] + 1 - base, kSpan);
    if (first >= last) {  // queries of a block follow one another
      if (count > 0) finish();
      continue;
    }
    float* state = tile.states + row * partial_floats(op);
    const bool begins = seen / kSpan == number;
    float* partial = tile.split ? shared_partial(op, scratch, token, head, number)
                     : begins   ? state
                                : tile.partials + count * partial_floats(op);
    states[count] = tile.split || begins ? nullptr : state;
    block[count++] = {tile.queries + row * tile.width, first, last, partial};
    if (count == kBlockQueries) finish();
  }
  if (count > 0) finish();
}

void put_out(const Attention& op, const Tile& tile, int64_t row, const float* state) {
  const int64_t token = tile.first + row / tile.G, head = tile.kv_head * tile.G + row % tile.G;
  float* y = op.y + (token * op.H + head) * op.C;
  const float total = state[tile.width + 1];
  for (int64_t c = 0; c < op.C; ++c) y[c] = state[c] / total;
}

void join_spans(const Attention& op, const Tile& tile, Scratch& scratch) {
  for (int64_t row = 0; row < (tile.last - tile.first) * tile.G; ++row) {
    const int64_t token = tile.first + row / tile.G, head = tile.kv_head * tile.G + row % tile.G;
    const int64_t first = first_seen(op, token) / kSpan, last = op.positions[token] / kSpan;
    float* state = shared_partial(op, scratch, token, head, first);
    for (int64_t span = first + 1; span <= last; ++span)
      join(state, shared_partial(op, scratch, token, head, span), tile.width);
    put_out(op, tile, row, state);
  }
}

}  // namespace

int64_t units(const Attention& op) {
  return tiles(op.T, tile_tokens(op)) * op.K * (may_split(op) ? spans_of_table(op) : 1);
}

int64_t scratch_bytes(const Attention& op) {
  const int64_t rows = larger(kTileQueries, heads_per_kv(op)), width = padded_channels(op.C), more = partial_floats(op);
  return 4 * (rows * (width + more) + kBlockQueries * (more + kSpan) + 2 * kSpan * width) + 6 * static_cast<int64_t>(kLine);
}

int64_t shared_bytes(const Attention& op) { return may_split(op) && spans_of_table(op) > 1 ? kSharedBytes : 0; }

int64_t flops(const Attention& op) {
  int64_t pairs = 0;
  for (int64_t token = 0; token < op.T; ++token) pairs += op.positions[token] + 1 - first_seen(op, token);
  return 4 * pairs * op.H * op.C;
}

void run(const Attention& op, int64_t unit, Scratch& scratch) {
  const int64_t number = unit / (tiles(op.T, tile_tokens(op)) * op.K);
  const Tile tile = take_tile(op, unit, scratch);
  if (tile.split ? number < tile.low || number >= tile.high : number > 0) return;
  load_queries(op, tile);
  for (int64_t token = tile.first; token < tile.last;) {
    const Run run = run_of(op, token, tile.last);
    const int64_t first = tile.split ? number : run.low / kSpan, last = tile.split ? number + 1 : tiles(run.high, kSpan);
    for (int64_t span = first; span < last; ++span) attend_span(op, tile, run, span, scratch);
    token = run.last;
  }
  if (tile.split) {
    std::atomic<int32_t>& finished = finished_spans(op, tile, scratch);
    if (finished.fetch_add(1, std::memory_order_acq_rel) + 1 < tile.high - tile.low) return;
    finished.store(0, std::memory_order_relaxed);
    join_spans(op, tile, scratch);
  } else {
    for (int64_t row = 0; row < (tile.last - tile.first) * tile.G; ++row)
      put_out(op, tile, row, tile.states + row * partial_floats(op));
  }
  scratch.stored((tile.last - tile.first) * tile.G * op.C * 4);
}

COTERIE_KERNEL(attention, Attention)

}  // namespace coterie::COTERIE_ISA
