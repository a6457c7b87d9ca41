// Branches of a mixture-of-experts layer: which tokens take which branch, and tiles of those tokens.
// Knows nothing about what is computed with a branch's weights.
//
//   weights   token 0   .  w  .  w      pairs   branch 1 | branch 2 | branch 3      a pair is a token and the place of the branch among
//             token 1   .  .  w  w              0 at 0   | 1 at 0   | 0 at 1, 1 at 1      those that it takes
//
// So a branch's weights are read once for all tokens that take it. A token's dot products are those of tile.h,
// whichever other tokens take the branch.
#pragma once

#include "op.h"

namespace coterie::COTERIE_ISA {

struct Pair {
  i32 token, place;
};

// Pairs [first[e], first[e + 1]) are those of branch e, in the order of tokens.
struct Pairs {
  const i32* first;
  const Pair* all;
  int64_t count(int64_t e) const { return first[e + 1] - first[e]; }
  const Pair* of(int64_t e) const { return all + first[e]; }
};

constexpr int64_t pairs_bytes(int64_t T, int64_t E, int64_t taken) { return bytes_of(E + 2) + bytes_of(2 * T * taken); }

// Calls `body` with each branch that a token takes and its place among them.
template <class Op, class Body>
void each_taken(const Op& op, int64_t token, Body body) {
  const float* weights = op.weights + token * op.E;
  i32 place = 0;
  for (int64_t e = 0; e < op.E && place < op.taken; ++e)
    if (weights[e] != 0.0f) body(e, place++);
}

// Computed once per thread and instruction, in its first unit.
template <class Op>
Pairs take_pairs(const Op& op, Scratch& scratch) {
  auto* first = reinterpret_cast<i32*>(scratch.floats(op.E + 2));
  auto* all = reinterpret_cast<Pair*>(scratch.floats(2 * op.T * op.taken));
  if (scratch.begins()) {
    std::memset(first, 0, static_cast<size_t>(op.E + 2) * sizeof *first);
    for (int64_t t = 0; t < op.T; ++t) each_taken(op, t, [&](int64_t e, i32) { ++first[e + 2]; });
    for (int64_t e = 2; e < op.E + 2; ++e) first[e] += first[e - 1];
    for (int64_t t = 0; t < op.T; ++t) each_taken(op, t, [&](int64_t e, i32 place) { all[first[e + 1]++] = {static_cast<i32>(t), place}; });
  }
  return {first, all};
}

// The number of tokens that take branch e, computed without scratch.
template <class Op>
int64_t count_taken(const Op& op, int64_t e) {
  int64_t count = 0;
  for (int64_t t = 0; t < op.T; ++t) count += op.weights[t * op.E + e] != 0.0f;
  return count;
}

// Upper bound of the bytes that a branch's tile needs; `bytes(n)`: those of a branch that n of the T tokens take.
template <class Bytes>
int64_t most_bytes(int64_t T, Bytes bytes) {
  const int64_t few = bytes(smaller(T, kFewTokens)), many = bytes(smaller(T, kManyTokens));
  return few > many ? few : many;
}

// Gathers `tokens` rows, row t from at(t), as dot_tile reads them for a branch that n tokens take;
// `there`: they are in place already.
template <class At>
Input gather(Scratch& scratch, At at, int64_t tokens, int64_t n, int64_t K, int64_t dtype, bool there) {
  const Forms forms = forms_of(n, dtype);
  if (forms.any()) {
    const Copies copies = take_copies(scratch, forms, n, K);
    for (int64_t t = 0; t < tokens && !there; ++t) copies.put(t, tokens, at(t), K);
    return {at(0), K, copies};
  }
  if (n <= kFewTokens) return {at(0), K};
  const int64_t stride = tile_stride(n, K);
  float* tile = take_tile(scratch, n, K);
  for (int64_t t = 0; t < tokens && !there; ++t) {
    std::memcpy(tile + t * stride, at(t), static_cast<size_t>(K) * sizeof(float));
    pad_row(tile + t * stride, n, K);
  }
  return {tile, stride};
}

// A unit's rows of `down`: more where many tokens are gathered for each branch.
constexpr int64_t down_rows(int64_t T) { return T <= kFewTokens ? kTileRows : 4 * kTileRows; }

template <class Op>
Block down_block(const Op& op, int64_t unit) {
  const int64_t parts = parts_of(1, op.dtype);
  if (op.T == 1) return block_in_parts(unit, 1, op.D, parts, rows_of_part(parts));  // not smaller: each unit copies tokens for all branches
  const int64_t row = unit * down_rows(op.T);
  return {0, op.T, row, smaller(down_rows(op.T), op.D - row)};
}

template <class Op>
int64_t down_units(const Op& op) {
  const int64_t parts = parts_of(1, op.dtype);
  if (op.T == 1) return units_in_parts(1, op.D, parts, rows_of_part(parts));
  return op.T == 0 ? 0 : tiles(op.D, down_rows(op.T));
}

template <class Op>
int64_t down_scratch_bytes(const Op& op) {
  return pairs_bytes(op.T, op.E, op.taken) + most_bytes(op.T, [&](int64_t n) {
           return input_bytes(n, op.F, forms_of(n, op.dtype)) + work_bytes(n, op.F) + bytes_of(token_tile(n) * down_rows(op.T));
         });
}

// Adds the results of branch e for a tile of tokens, times the tokens' weights, to y.
template <class Op>
void add_branch(const Op& op, int64_t e, const Pair* pairs, int64_t tokens, int64_t n, const Block& rows, Scratch& scratch) {
  const int64_t width = down_rows(op.T), part_at = rows.parts == 1 ? 0 : rows_of_part(rows.parts);
  const auto at = [&](int64_t t) { return op.x + (pairs[t].token * op.taken + pairs[t].place) * op.F; };
  const Input in = gather(scratch, at, tokens, n, op.F, op.dtype, false);
  const Work work = take_work(scratch, n, op.F);
  float* out = scratch.floats(token_tile(n) * width);
  const Block block{0, tokens, rows.row, rows.rows, rows.parts, rows.apart};
  linear_block(in, block, {op.branches[e], op.dtype, nullptr, 0}, op.F, out, width, part_at, work);
  for (int64_t t = 0; t < tokens; ++t) {
    const float weight = op.weights[pairs[t].token * op.E + e];
    for (int64_t part = 0; part < rows.parts; ++part) {
      float* y = op.y + pairs[t].token * op.D + rows.row + part * rows.apart;
      const float* sums = out + t * width + part * part_at;
      for (int64_t n = 0; n < rows.rows; ++n) y[n] += weight * sums[n];
    }
  }
}

// y = the sum over a token's branches, in their order.
// Calls `end` with the place and length of each run of y that is complete.
template <class Op, class End>
void down_unit(const Op& op, int64_t unit, Scratch& scratch, End end) {
  const Pairs pairs = take_pairs(op, scratch);
  const Block block = down_block(op, unit);
  const size_t used = scratch.used();
  const auto each_row = [&](auto body) {
    for (int64_t t = 0; t < op.T; ++t)
      for (int64_t part = 0; part < block.parts; ++part) body(t * op.D + block.row + part * block.apart);
  };
  each_row([&](int64_t at) { std::memset(op.y + at, 0, static_cast<size_t>(block.rows) * sizeof(float)); });
  for (int64_t e = 0; e < op.E; ++e) {
    const int64_t n = pairs.count(e);
    for (int64_t t = 0; t < n; t += token_tile(n), scratch.rewind(used))
      add_branch(op, e, pairs.of(e) + t, smaller(token_tile(n), n - t), n, block, scratch);
  }
  each_row([&](int64_t at) { end(at, block.rows); });
  scratch.stored(block.values() * 4);
}

}  // namespace coterie::COTERIE_ISA
