// choose_branches: y = scale * softmax(logits) where it is among the top_k largest of a row, else 0; or, normalised, these divided by their
// sum. Of equal ones the first.
#include "../math.h"
#include "../op.h"

namespace coterie::COTERIE_ISA {

namespace {

constexpr float kLeast = 1e-30f;  // of a branch that is taken, so that none of them is 0

// y = exp(x - the largest of x) over one row; the sum.
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

// Marks the top_k largest of a row.
void mark_largest(const float* x, int64_t E, int64_t top_k, i32* marked) {
  std::memset(marked, 0, static_cast<size_t>(E) * sizeof *marked);
  for (int64_t k = 0; k < top_k; ++k) {
    int64_t best = -1;
    for (int64_t e = 0; e < E; ++e)
      if (!marked[e] && (best < 0 || x[e] > x[best])) best = e;
    marked[best] = 1;
  }
}

}  // namespace

int64_t units(const ChooseBranches& op) { return tiles(op.T, kTileTokens); }
int64_t scratch_bytes(const ChooseBranches& op) { return bytes_of(op.E); }
int64_t flops(const ChooseBranches& op) { return op.T * op.E * (op.top_k + 20); }

void run(const ChooseBranches& op, int64_t unit, Scratch& scratch) {
  auto* marked = reinterpret_cast<i32*>(scratch.floats(op.E));
  const int64_t first = unit * kTileTokens, last = smaller(op.T, first + kTileTokens);
  for (int64_t t = first; t < last; ++t) {
    const float* x = op.logits + t * op.E;
    float* y = op.y + t * op.E;
    float total = exponentials(x, op.E, y);
    mark_largest(x, op.E, op.top_k, marked);
    if (op.normalise) {
      total = 0.0f;
      for (int64_t e = 0; e < op.E; ++e) total += marked[e] ? y[e] : 0.0f;
    }
    const float factor = static_cast<float>(op.scale);
    for (int64_t e = 0; e < op.E; ++e) {
      const float weight = y[e] / total * factor;
      y[e] = !marked[e] ? 0.0f : weight < kLeast ? kLeast : weight;
    }
  }
  scratch.stored((last - first) * op.E * 4);
}

COTERIE_KERNEL(choose_branches, ChooseBranches)

}  // namespace coterie::COTERIE_ISA
