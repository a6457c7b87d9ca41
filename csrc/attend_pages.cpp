// A translation unit of its own, once per instruction set:
// all attention ops run this code, which is instantiated for many types.
#include "attend_pages.h"

#include <atomic>
#include <cmath>

#include "attend_stored.h"

namespace coterie::COTERIE_ISA {

namespace {

int64_t max_rows(const Attended& op) { return larger(kTileQueries, heads_per_kv(op)); }

// Per head of a unit, the biases of all positions that its tokens see, in order. W - 1 more are read but not used.
int64_t bias_floats(const Attended& op) { return op.table_width * op.Z + tile_tokens(op) + W; }
int64_t biased_heads(const Attended& op) {
  return op.bias == nullptr ? 0 : smaller(op.H, larger(heads_per_kv(op), kStoredRows));
}

// A unit's private memory.
struct Room {
  float *q, *states, *partials, *scores, *biases;
  Query* queries;
  Copy copy;
};

constexpr int64_t kQueryFloats = sizeof(Query) / sizeof(float);

void take_room(const Attended& op, Scratch& scratch, Room& room) {
  const int64_t width = key_width(op), rows = max_rows(op);
  room.q = scratch.floats(rows * width);
  room.states = scratch.floats(rows * partial_floats(op));
  room.partials = scratch.floats(rows * partial_floats(op));
  room.scores = scratch.floats(rows * kSpan);
  room.biases = scratch.floats(biased_heads(op) * bias_floats(op));
  room.queries = reinterpret_cast<Query*>(scratch.floats(rows * kQueryFloats));
  room.copy.keys = scratch.floats(kSpan * width);
  room.copy.values = scratch.floats(kSpan * value_width(op));
}

// Shared memory of split tiles: counters of finished spans, then a partial per (token, head, span).
std::atomic<int32_t>& finished_spans(const Attended& op, const Tile& tile, const Scratch& scratch) {
  return reinterpret_cast<std::atomic<int32_t>*>(scratch.shared())[tile.first / tile_tokens(op) * op.K + tile.kv_head];
}

float* shared_partial(const Attended& op, const Scratch& scratch, int64_t token, int64_t head, int64_t span) {
  float* all = reinterpret_cast<float*>(scratch.shared()) + kCounters;
  return all + ((token * op.H + head) * spans_of_table(op) + span) * partial_floats(op);
}

// Finds the addresses of positions [first, last) of a span, page by page.
void find_span(const Attended& op, int64_t sequence, int64_t kv_head, int64_t base, int64_t first, int64_t last, Span& span) {
  const int64_t row_bytes = page_row_bytes(op.kv_dtype, op.C);
  for (int64_t j = first; j < last;) {
    bytes* key = row_address(op, sequence, base + j, kKey, kv_head);
    for (const int64_t end = smaller(last, j + op.Z - (base + j) % op.Z); j < end; ++j, key += row_bytes) span.keys[j] = key;
  }
  for (int64_t j = first / W * W; j < first; ++j) span.keys[j] = span.keys[first];
  for (int64_t j = last; j % W != 0; ++j) span.keys[j] = span.keys[last - 1];
  span.to_head = op.Z * row_bytes;
  span.to_value = op.latent == 0 ? op.K * op.Z * row_bytes : 0;
  span.dtype = op.kv_dtype;
  span.C = op.C;
  span.width = key_width(op);
  span.value_channels = value_channels(op);
  span.value_width = value_width(op);
  span.follow = op.Z % kAtOnce == 0;
}

// The queries of a run, numbered by kv head, then token, then query head of the group.
struct QueryRows {
  int64_t tokens, G, first_token, first_head;
  int64_t token(int64_t row) const { return first_token + row / G % tokens; }
  int64_t head(int64_t row) const { return first_head + row / (G * tokens) * G + row % G; }
};

QueryRows rows_of(const Attended& op, const Tile& tile, const Run& run) {
  return {run.last - run.first, heads_per_kv(op), run.first, tile.kv_head * heads_per_kv(op)};
}

float grown(const Attended& op, int64_t position) {
  return static_cast<float>(1.0 + op.growth * std::log(1.0 + static_cast<double>(position / op.every)));
}

void load_queries(const Attended& op, const QueryRows& rows, int64_t count, float* queries) {
  const int64_t width = key_width(op);
  for (int64_t row = 0; row < count; ++row) {
    const float* q = op.q + (rows.token(row) * op.H + rows.head(row)) * op.C;
    std::memcpy(queries + row * width, q, static_cast<size_t>(op.C) * sizeof(float));
    if (op.growth != 0.0) {
      const float factor = grown(op, op.positions[rows.token(row)]);
      for (int64_t c = 0; c < op.C; ++c) queries[row * width + c] *= factor;
    }
    for (int64_t c = op.C; c < width; ++c) queries[row * width + c] = 0.0f;
    if constexpr (kBf16Tiles)
      if (op.rounded) round_query(queries + row * width, width);
  }
}

float bias_of(const Attended& op, int64_t head, int64_t offset) {
  const auto number = [&](int64_t row) { return widen_number(op.bias + (row * op.H + head) * size_of(op.bias_dtype), op.bias_dtype); };
  if (op.buckets == nullptr) return -number(0) * static_cast<float>(offset < 0 ? -offset : offset);
  return number(static_cast<int64_t>(op.buckets[smaller(larger(offset, -op.reach), op.reach) + op.reach]));
}

// biases[0] is that of the first position as seen by the last token; those of each earlier token begin one further on.
void load_biases(const Attended& op, const Tile& tile, const Run& run, const QueryRows& rows, float* biases) {
  const int64_t heads = tile.heads * rows.G, last = position_of(op, run.last - 1);
  for (int64_t head = 0; head < heads; ++head, biases += bias_floats(op))
    for (int64_t i = 0; i < run.high + rows.tokens - 1; ++i) biases[i] = bias_of(op, rows.first_head + head, i - last);
}

// One span for the tokens of one sequence, whose queries are loaded.
class SpanOfRun {
 public:
  SpanOfRun(const Attended& op, const Tile& tile, const Run& run, int64_t number, const Room& room, const Scratch& scratch)
      : op_(op), tile_(tile), run_(run), rows_(rows_of(op, tile, run)), number_(number), room_(room), scratch_(scratch) {}

  void attend(Span& span, Copy& copy, const Pass& next) {
    const int64_t base = number_ * kSpan, low = larger(run_.low - base, 0), high = smaller(run_.high - base, kSpan);
    if (low >= high) return;
    find_span(op_, op_.sequence[run_.first], tile_.kv_head, base, low, high, span);
    stored_ = reads_stored(op_, rows_.tokens);
    if (!stored_) copy_keys_and_values(span, low, high, copy);
    for (int64_t first = 0; first < rows_.tokens;) {  // consecutive tokens that see part of the span
      int64_t last = first;
      while (last < rows_.tokens && seen(last).first < seen(last).last) ++last;
      if (last > first) stored_ ? attend_heads(span, first, last, next) : attend_blocks(span, copy, first, last);
      first = last + 1;
    }
  }

 private:
  Range seen(int64_t token) const {
    const int64_t at = run_.first + token, base = number_ * kSpan;
    return {larger(first_seen(op_, at) - base, 0), smaller(last_seen(op_, at) + 1 - base, kSpan)};
  }

  void put(int64_t slot, int64_t row) {
    const int64_t token = rows_.token(row), size = partial_floats(op_);
    const Range range = seen(token - run_.first);
    Query& query = room_.queries[slot];
    query = {room_.q + row * key_width(op_), range.first, range.last, nullptr, nullptr, nullptr};
    if (op_.bias != nullptr)
      query.bias = room_.biases + (rows_.head(row) - rows_.first_head) * bias_floats(op_) + number_ * kSpan + run_.last - 1 - token;
    if (tile_.split) {
      query.partial = shared_partial(op_, scratch_, token, rows_.head(row), number_);
    } else if (first_seen(op_, token) / kSpan == number_) {
      query.partial = room_.states + row * size;
    } else {
      query.partial = room_.partials + slot * size;
      query.state = room_.states + row * size;
    }
  }

  void merge_states(int64_t count) {
    for (int64_t i = 0; i < count; ++i)
      if (room_.queries[i].state != nullptr)
        merge_partials(room_.queries[i].state, room_.queries[i].partial, value_width(op_));
  }

  void attend_heads(const Span& span, int64_t first, int64_t last, const Pass& next) {
    const int64_t per_head = (last - first) * rows_.G;
    for (int64_t head = 0; head < tile_.heads; ++head)
      for (int64_t i = 0; i < per_head; ++i)
        put(head * per_head + i, (head * rows_.tokens + first) * rows_.G + i);
    Stored stored(span, room_.queries, tile_.heads, per_head, static_cast<float>(op_.scale), static_cast<float>(op_.cap), room_.scores);
    if constexpr (kBf16Tiles)
      if (op_.rounded) return stored.attend_rounded(next), merge_states(tile_.heads * per_head);
    with_stored(span.dtype, [&]<DType D>() { stored.attend<D>(next); });
    merge_states(tile_.heads * per_head);
  }

  void copy_keys_and_values(const Span& span, int64_t first, int64_t last, Copy& copy) {
    if constexpr (kBf16Tiles)
      if (op_.rounded) return copy_bf16(span, first, last, copy);
    copy_span(span, first, last, copy);
  }

  void attend_block(const Span& span, const Copy& copy, int64_t count) {
    const auto scale = static_cast<float>(op_.scale), cap = static_cast<float>(op_.cap);
    if constexpr (kBf16Tiles)
      if (op_.rounded) return attend_bf16(copy, span, room_.queries, count, scale, cap, room_.scores);
    attend_copied(copy, span.width, span.value_width, room_.queries, count, scale, cap, room_.scores);
  }

  void attend_blocks(const Span& span, const Copy& copy, int64_t first, int64_t last) {
    for (int64_t row = first * rows_.G; row < last * rows_.G; row += kBlockQueries) {
      const int64_t count = smaller(kBlockQueries, last * rows_.G - row);
      for (int64_t i = 0; i < count; ++i) put(i, row + i);
      attend_block(span, copy, count);
      merge_states(count);
    }
  }

  const Attended& op_;
  const Tile& tile_;
  const Run& run_;
  const QueryRows rows_;
  const int64_t number_;
  const Room& room_;
  const Scratch& scratch_;
  bool stored_ = false;
};

void put_out(const Attended& op, int64_t token, int64_t head, const float* state) {
  const int64_t C = value_channels(op);
  float* y = op.y + (token * op.H + head) * C;
  const float* end = state + value_width(op);
  const float total = end[1] + sink_weight(op.sinks, op.sinks_dtype, head, end[0]);
  if constexpr (kBf16Tiles)
    if (op.rounded) return put_bf16_sums(state, total, C, y);
  for (int64_t c = 0; c < C; ++c) y[c] = state[c] / total;
}

// The keys of the unit that this thread is likely to take next, so that they can be prefetched:
// it takes the units of its share in order.
Pass next_of(const Attended& op, const Tile& tile, int64_t number, int64_t threads, Span& span) {
  const int64_t tokens = tile_tokens(op), count = tiles(op.T, tokens);
  const int64_t together = heads_together(op, tile.high - tile.low, threads), groups = tiles(op.K, together);
  const int64_t order = (number * count + count - 1 - tile.first / tokens) * groups + tile.kv_head / together + 1;
  const int64_t next = order / groups / count;
  if (next >= spans_of_table(op)) return {};
  const Tile later = tile_of(op, order / groups * op.K + order % groups * together, threads);
  if (!later.split || later.heads == 0 || next < later.low || next >= later.high) return {};
  const Run run = run_of(op, later.first, later.last);
  const Range seen{larger(run.low - next * kSpan, 0), smaller(run.high - next * kSpan, kSpan)};
  if (seen.first >= seen.last) return {};
  find_span(op, op.sequence[run.first], later.kv_head, next * kSpan, seen.first, seen.last, span);
  return {span, 0, later.heads, seen};
}

// Spans [first, last) for the tokens of one sequence.
void attend_run(const Attended& op, const Tile& tile, const Run& run, int64_t first, int64_t last, Scratch& scratch, Room& room) {
  const QueryRows rows = rows_of(op, tile, run);
  const int64_t count = tile.heads * rows.tokens * rows.G;
  load_queries(op, rows, count, room.q);
  if (op.bias != nullptr) load_biases(op, tile, run, rows, room.biases);
  Span span, later;
  const Pass next = tile.split && run.last == tile.last ? next_of(op, tile, first, scratch.threads(), later) : Pass();
  for (int64_t number = first; number < last; ++number)
    SpanOfRun(op, tile, run, number, room, scratch).attend(span, room.copy, next);
  if (tile.split) return;
  for (int64_t row = 0; row < count; ++row)
    put_out(op, rows.token(row), rows.head(row), room.states + row * partial_floats(op));
}

void merge_spans(const Attended& op, const Tile& tile, const Scratch& scratch) {
  const int64_t G = heads_per_kv(op);
  for (int64_t token = tile.first; token < tile.last; ++token) {
    const int64_t first = first_seen(op, token) / kSpan, last = last_seen(op, token) / kSpan;
    for (int64_t head = tile.kv_head * G; head < (tile.kv_head + tile.heads) * G; ++head) {
      float* state = shared_partial(op, scratch, token, head, first);
      for (int64_t span = first + 1; span <= last; ++span)
        merge_partials(state, shared_partial(op, scratch, token, head, span), value_width(op));
      put_out(op, token, head, state);
    }
  }
}

void attend_tile(const Attended& op, int64_t unit, Scratch& scratch) {
  const int64_t number = unit / (tiles(op.T, tile_tokens(op)) * op.K);
  const Tile tile = tile_of(op, unit, scratch.threads());
  if (tile.heads == 0 || (tile.split ? number < tile.low || number >= tile.high : number > 0)) return;
  Room room;
  take_room(op, scratch, room);
  for (int64_t token = tile.first; token < tile.last;) {
    const Run run = run_of(op, token, tile.last);
    const int64_t first = tile.split ? number : run.low / kSpan, last = tile.split ? number + 1 : tiles(run.high, kSpan);
    attend_run(op, tile, run, first, last, scratch, room);
    token = run.last;
  }
  if (tile.split) {
    std::atomic<int32_t>& finished = finished_spans(op, tile, scratch);
    if (finished.fetch_add(1, std::memory_order_acq_rel) + 1 < tile.high - tile.low) return;
    finished.store(0, std::memory_order_relaxed);
    merge_spans(op, tile, scratch);
  }
  scratch.stored((tile.last - tile.first) * tile.heads * heads_per_kv(op) * value_channels(op) * 4);
}

}  // namespace

int64_t attend_units(const Attended& op) {
  return tiles(op.T, tile_tokens(op)) * op.K * (may_split(op) ? spans_of_table(op) : 1);
}

int64_t attend_scratch_bytes(const Attended& op) {
  const int64_t width = key_width(op), row = width + 2 * partial_floats(op) + kSpan + kQueryFloats;
  const int64_t biases = biased_heads(op) * bias_floats(op);
  return 4 * (max_rows(op) * row + kSpan * (width + value_width(op)) + biases) + 8 * static_cast<int64_t>(kLine);
}

int64_t attend_shared_bytes(const Attended& op) { return may_split(op) && spans_of_table(op) > 1 ? kSharedBytes : 0; }

int64_t attend_flops(const Attended& op) {
  int64_t pairs = 0;
  for (int64_t token = 0; token < op.T; ++token) pairs += last_seen(op, token) + 1 - first_seen(op, token);
  return 2 * pairs * op.H * (op.C + value_channels(op));
}

void attend_unit(const Attended& op, int64_t unit, Scratch& scratch) {
#if defined(__AVX512F__)
  if (op.rounded) {
    const Flushed flushed;
    return attend_tile(op, unit, scratch);
  }
#endif
  attend_tile(op, unit, scratch);
}

}  // namespace coterie::COTERIE_ISA
