// choose_branches: y = scale * scores for the top_k of a row, else 0; with normalise, scores are divided by the sum of
// the chosen ones. Scores are a softmax of the logits, or their sigmoid.
// With a bias or groups, scores + bias are ranked, within the best groups only; of equal ones the first wins.
// A branch's weight may be multiplied by a factor of its own.
#include "../math.h"
#include "../op.h"

#include <cmath>

namespace coterie::COTERIE_ISA {

namespace {

constexpr float kMinWeight = 1e-30f;  // smallest magnitude of a taken branch's weight: 0 means not taken

// y = exp(x - max(x)) over one row; returns the sum.
float exponentials(const float* x, int64_t E, float* y) {
  float largest = x[0];
  for (int64_t e = 1; e < E; ++e) largest = x[e] > largest ? x[e] : largest;
  V total{};
  int64_t e = 0;
  for (; e + W <= E; e += W) {
    const V p = exp(load(x + e) - splat(largest));
    store(y + e, p);
    total = total + p;
  }
  float rest = 0.0f;
  if (e < E) {
    store_part(y + e, exp(load_part(x + e, E - e) - splat(largest)), E - e);
    for (; e < E; ++e) rest += y[e];
  }
  return sum(total) + rest;
}

void sigmoids(const float* x, int64_t E, float* y) {
  int64_t e = 0;
  for (; e + W <= E; e += W) store(y + e, sigmoid(load(x + e)));
  if (e < E) store_part(y + e, sigmoid(load_part(x + e, E - e)), E - e);
}

// Marks the `count` largest unmarked numbers of a row, of which there must be as many.
constexpr i32 kTaken = 1, kOut = 2;
void mark_largest(const float* x, int64_t E, int64_t count, i32* marked) {
  for (int64_t k = 0; k < count; ++k) {
    int64_t best = -1;
    for (int64_t e = 0; e < E; ++e)
      if (!marked[e] && (best < 0 || x[e] > x[best])) best = e;
    marked[best] = kTaken;
  }
}

// Marks the branches of all but the best groups as out. `ranks` and `best` have room for the groups.
void leave_best_groups(const ChooseBranches& op, const float* x, i32* marked, float* ranks, i32* best) {
  const int64_t size = op.E / op.groups;
  for (int64_t g = 0; g < op.groups; ++g) {
    const float* group = x + g * size;
    i32* taken = marked + g * size;
    mark_largest(group, size, op.group_best, taken);
    ranks[g] = 0.0f;
    for (int64_t e = 0; e < size; ++e) ranks[g] += taken[e] ? group[e] : 0.0f;
    best[g] = 0;
  }
  mark_largest(ranks, op.groups, op.taken_groups, best);
  for (int64_t e = 0; e < op.E; ++e) marked[e] = best[e / size] ? 0 : kOut;
}

// Writes the scores of a row up to a factor; returns the divisor that normalises them.
float scores(const ChooseBranches& op, const float* x, float* y) {
  if (!op.sigmoid) return exponentials(x, op.E, y);
  sigmoids(x, op.E, y);
  return 1.0f;
}

void mark_taken(const ChooseBranches& op, const float* ranks, i32* marked, Scratch& scratch) {
  std::memset(marked, 0, static_cast<size_t>(op.E) * sizeof *marked);
  if (op.groups) {
    float* of_groups = scratch.floats(op.groups);
    leave_best_groups(op, ranks, marked, of_groups, reinterpret_cast<i32*>(scratch.floats(op.groups)));
  }
  mark_largest(ranks, op.E, op.top_k, marked);
}

}  // namespace

int64_t units(const ChooseBranches& op) { return tiles(op.T, kTileTokens); }
int64_t scratch_bytes(const ChooseBranches& op) { return 2 * bytes_of(op.E) + 2 * bytes_of(op.groups); }
int64_t flops(const ChooseBranches& op) { return op.T * op.E * (op.top_k + op.group_best + 20); }

void run(const ChooseBranches& op, int64_t unit, Scratch& scratch) {
  auto* marked = reinterpret_cast<i32*>(scratch.floats(op.E));
  float* biased = scratch.floats(op.E);
  const bool ranks_scores = op.bias || op.groups;
  const float factor = static_cast<float>(op.scale), least = static_cast<float>(op.least_sum);
  const int64_t first = unit * kTileTokens, last = smaller(op.T, first + kTileTokens);
  const size_t used = scratch.used();
  for (int64_t t = first; t < last; ++t, scratch.rewind(used)) {
    const float* x = op.logits + t * op.E;
    float* y = op.y + t * op.E;
    float total = scores(op, x, y);
    if (ranks_scores) {
      for (int64_t e = 0; e < op.E; ++e) biased[e] = y[e] /= total;
      add_bias(biased, op.E, 1, op.bias, op.bias_dtype, 0, op.E);
      total = 1.0f;
    }
    mark_taken(op, ranks_scores ? biased : x, marked, scratch);
    if (op.normalise) {
      total = 0.0f;
      for (int64_t e = 0; e < op.E; ++e) total += marked[e] == kTaken ? y[e] : 0.0f;
      total = (total < least ? least : total) + static_cast<float>(op.added_sum);
    }
    for (int64_t e = 0; e < op.E; ++e) {
      const float own = op.factors == nullptr ? 1.0f : widen_number(op.factors + e * size_of(op.factors_dtype), op.factors_dtype);
      const float weight = y[e] / total * factor * own;
      y[e] = marked[e] != kTaken ? 0.0f : std::fabs(weight) < kMinWeight ? kMinWeight : weight;
    }
  }
  scratch.stored((last - first) * op.E * 4);
}

COTERIE_KERNEL(choose_branches, ChooseBranches)

}  // namespace coterie::COTERIE_ISA
