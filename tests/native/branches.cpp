// Ops of layers with branches, on odd shapes, compared with plain loops: branches that all, some and no tokens take.
#include <algorithm>

#include "plain.h"

namespace testing {

namespace {

struct Shape {
  int64_t T, E, taken, D, F;
};

// A matrix times one token's row of x.
Doubles times(const Doubles& x, const Tensor& w, int64_t N, int64_t K) { return linear(x, w, Tensor{}, 1, N, K); }

std::vector<bytes*> table(const std::vector<Tensor>& first, const std::vector<Tensor>& second = {}) {
  std::vector<bytes*> at;
  for (const Tensor& w : first) at.push_back(w.at());
  for (const Tensor& w : second) at.push_back(w.at());
  return at;
}

// The scores of one token's branches: softmax or sigmoid of the logits.
Doubles scores_of(const float* logits, int64_t E, bool sigmoid) {
  Doubles scores;
  double total = 0;
  for (int64_t e = 0; e < E; ++e) scores.push_back(sigmoid ? 1 / (1 + std::exp(-logits[e])) : std::exp(logits[e])), total += scores.back();
  if (!sigmoid)
    for (double& score : scores) score /= total;
  return scores;
}

void test_block(const Shape& s, DType dtype) {
  const auto [T, E, taken, D, F] = s;
  const std::vector<float> logits = random_floats(T * E), x = random_floats(T * D), residual = random_floats(T * D);
  std::vector<Tensor> gate, up, down;
  for (int64_t e = 0; e < E; ++e) {
    gate.push_back(weight(F, D, dtype));
    up.push_back(weight(F, D, dtype));
    down.push_back(weight(D, F, dtype));
  }
  const Tensor bias = weight(1, E, dtype);
  const integer groups = E % 2 == 0 && 2 * taken <= E ? 2 : 0;
  const std::vector<bytes*> inward = table(gate, up), outward = table(down);
  const integer type = static_cast<integer>(dtype);
  const Tensor own = weight(1, E, dtype);
  std::vector<float> weights(T * E), own_weights(T * E), inner(T * taken * F), by_gelu(T * taken * F), y(T * D), added(T * D);
  const ChooseBranches choose{logits.data(), weights.data(), T, E, taken, 1, 0.5, bias.at(), type, E % 2, 1e-20, groups, 1, 1, nullptr, 0, 0.0};
  ChooseBranches factored = choose;
  factored.y = own_weights.data(), factored.factors = own.at(), factored.factors_dtype = own.type(), factored.added_sum = 0.25;
  const std::vector<Row> rows = {
      row_of(Opcode::choose_branches, choose),
      row_of(Opcode::choose_branches, factored),
      row_of(Opcode::branch_gate_up_gelu,
             BranchGateUpGelu{x.data(), weights.data(), inward.data(), type, by_gelu.data(), T, E, taken, D, F, 1}),
      row_of(Opcode::branch_gate_up, BranchGateUp{x.data(), weights.data(), inward.data(), type, inner.data(), T, E, taken, D, F}),
      row_of(Opcode::branch_down, BranchDown{inner.data(), weights.data(), outward.data(), type, y.data(), T, E, taken, D, F}),
      row_of(Opcode::branch_down_add,
             BranchDownAdd{inner.data(), weights.data(), outward.data(), type, added.data(), T, E, taken, D, F, residual.data()}),
  };
  everywhere("branches", rows, {output(weights), output(own_weights), output(inner), output(by_gelu), output(y), output(added)}, [&] {
    Doubles wide, smooth, wanted(static_cast<size_t>(T * D)), with_residual;
    Doubles factored_weights;
    bool right = true;
    for (int64_t t = 0; t < T; ++t) {
      const Doubles scores = scores_of(&logits[t * E], E, choose.sigmoid != 0);
      double total = 0, sum = 0.25;
      for (int64_t e = 0; e < E; ++e) sum += weights[t * E + e] == 0.0f ? 0.0 : scores[e];
      for (int64_t e = 0; e < E; ++e) factored_weights.push_back(weights[t * E + e] == 0.0f ? 0.0 : scores[e] / sum * 0.5 * own[e]);
      int64_t found = 0;
      for (int64_t e = 0; e < E; ++e) {
        const float weight = weights[t * E + e];
        if (weight == 0.0f) continue;
        total += weight, ++found;
        const Doubles token(x.begin() + t * D, x.begin() + (t + 1) * D);
        const Doubles g = times(token, gate[e], F, D), u = times(token, up[e], F, D);
        Doubles h(g.size());
        for (size_t f = 0; f < g.size(); ++f) h[f] = silu(g[f]) * u[f], smooth.push_back(gelu(g[f], 1) * u[f]);
        const Doubles out = times(h, down[e], D, F);
        for (int64_t d = 0; d < D; ++d) wanted[t * D + d] += weight * out[d];
        wide.insert(wide.end(), h.begin(), h.end());
      }
      right = right && found == taken && std::abs(total - 0.5) < 1e-5;
    }
    for (size_t i = 0; i < wanted.size(); ++i) with_residual.push_back(wanted[i] + residual[i]);
    return right && close(own_weights, factored_weights, 1e-5) && close(inner, wide, 1e-5) && close(by_gelu, smooth, 1e-5) && close(y, wanted, 2e-5) && close(added, with_residual, 2e-5);
  });
}

// Clipped gates, with the biases of all branches in one table each; and biases added to the branches' outputs.
void test_clipped(const Shape& s, DType dtype) {
  const auto [T, E, taken, D, F] = s;
  const double alpha = 1.702, limit = 0.5;
  const std::vector<float> x = random_floats(T * D);
  const Tensor gate_bias = weight(E, F, DType::bf16), up_bias = weight(E, F, DType::bf16), down_bias = weight(E, D, DType::bf16);
  std::vector<Tensor> gate, up;
  for (int64_t e = 0; e < E; ++e) gate.push_back(weight(F, D, dtype)), up.push_back(weight(F, D, dtype));
  const std::vector<bytes*> inward = table(gate, up);
  std::vector<float> weights(T * E), inner(T * taken * F), biased(T * D);
  for (int64_t t = 0; t < T; ++t)
    for (int64_t e = 0; e < taken; ++e) weights[t * E + (t + e) % E] = 0.1f * static_cast<float>(e + 1);
  BranchGateUpClipped op{};
  op.x = x.data(), op.weights = weights.data(), op.branches = inward.data(), op.dtype = static_cast<integer>(dtype), op.y = inner.data();
  op.T = T, op.E = E, op.taken = taken, op.D = D, op.F = F, op.alpha = alpha, op.limit = limit;
  op.gate_bias = gate_bias.at(), op.gate_bias_dtype = gate_bias.type(), op.up_bias = up_bias.at(), op.up_bias_dtype = up_bias.type();
  const AddBranchBias add{x.data(), weights.data(), down_bias.at(), down_bias.type(), biased.data(), T, E, D};
  const std::vector<Row> rows = {row_of(Opcode::branch_gate_up_clipped, op), row_of(Opcode::add_branch_bias, add)};
  everywhere("clipped branches", rows, {output(inner), output(biased)}, [&] {
    Doubles wide, sums(x.begin(), x.end());
    for (int64_t t = 0; t < T; ++t)
      for (int64_t e = 0; e < E; ++e) {
        if (weights[t * E + e] == 0.0f) continue;
        const Doubles token(x.begin() + t * D, x.begin() + (t + 1) * D);
        const Doubles g = times(token, gate[e], F, D), u = times(token, up[e], F, D);
        for (int64_t f = 0; f < F; ++f) {
          const double one = std::min(g[f] + gate_bias[e * F + f], limit), other = std::clamp(u[f] + up_bias[e * F + f], -limit, limit);
          wide.push_back((other + 1) * one / (1 + std::exp(-alpha * one)));
        }
        for (int64_t d = 0; d < D; ++d) sums[t * D + d] += weights[t * E + e] * down_bias[e * D + d];
      }
    return close(inner, wide, 1e-5) && close(biased, sums, 1e-5);
  });
}

}  // namespace

void test_branches() {
  const Shape shapes[] = {{0, 2, 1, 3, 4}, {1, 1, 1, 1, 1}, {1, 9, 3, 33, 40}, {3, 4, 4, 17, 9}, {20, 3, 2, 35, 37}, {40, 2, 1, 24, 33}};
  for (const DType dtype : {DType::bf16, DType::f16, DType::f32})
    for (const Shape& shape : shapes) test_block(shape, dtype), test_clipped(shape, dtype);
}

}  // namespace testing
