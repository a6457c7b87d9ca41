// branch_gate_up: y[t, p] = silu(x[t] @ gate.T) * (x[t] @ up.T) of the p-th branch that token t takes, in the order of
// branches.
// branch_gate_up_gelu: gelu in place of silu.
// branch_gate_up_clipped: with biases, both clipped, and y = (up + 1) * gate * sigmoid(alpha * gate).
#include "../branches.h"
#include "../gate_up.h"

namespace coterie::COTERIE_ISA {

namespace {

// A branch and the tokens that take it, with the operands that gate_up.h needs.
struct Branch {
  bytes *gate, *up;
  int64_t gate_dtype, up_dtype, T, D, F;
  bytes *gate_bias = nullptr, *up_bias = nullptr;
  int64_t gate_bias_dtype = 0, up_bias_dtype = 0;
};

template <class Op>
Branch branch_of(const Op& op, int64_t e, int64_t tokens) {
  return {op.branches[e], op.branches[op.E + e], op.dtype, op.dtype, tokens, op.D, op.F};
}

Branch branch_of(const BranchGateUpClipped& op, int64_t e, int64_t tokens) {
  const auto of_branch = [&](bytes* bias, int64_t dtype) { return bias + e * op.F * size_of(dtype); };
  return {op.branches[e], op.branches[op.E + e], op.dtype, op.dtype, tokens, op.D, op.F,
          of_branch(op.gate_bias, op.gate_bias_dtype), of_branch(op.up_bias, op.up_bias_dtype), op.gate_bias_dtype, op.up_bias_dtype};
}

void put_row(const BranchGateUp&, const float* gate, const float* up, int64_t N, float* y) {
  act_mul_row(gate, up, N, y, [](V x) { return silu(x); });
}

void put_row(const BranchGateUpGelu& op, const float* gate, const float* up, int64_t N, float* y) {
  with_gelu(op.form, [&](auto gelu) { act_mul_row(gate, up, N, y, gelu); });
}

// NaNs propagate: min and max return their second operand if either is NaN.
void put_row(const BranchGateUpClipped& op, const float* gate, const float* up, int64_t N, float* y) {
  const V alpha = splat(static_cast<float>(op.alpha)), limit = splat(static_cast<float>(op.limit));
  join_row(gate, up, N, y, [&](V gate, V up) {
    const V g = min(limit, gate), u = max(V{} - limit, min(limit, up));
    return (u + splat(1.0f)) * (g / (splat(1.0f) + exp(V{} - alpha * g)));
  });
}

int64_t units_of(const Branch& branch) {
  const int64_t parts = gate_up_parts(branch);
  return units_in_parts(branch.T, branch.F, parts, rows_of_part(parts));  // not smaller: there are units of several branches
}

template <class Op>
int64_t all_units(const Op& op) {
  int64_t units = 0;
  for (int64_t e = 0; e < op.E; ++e)
    if (const int64_t n = count_taken(op, e)) units += units_of(branch_of(op, e, n));
  return units;
}

template <class Op>
int64_t most_scratch_bytes(const Op& op) {
  return pairs_bytes(op.T, op.E, op.taken) + most_bytes(op.T, [&](int64_t n) {
           return input_bytes(n, op.D, forms_of(n, op.dtype)) + work_bytes(n, op.D) + bytes_of(token_tile(n) * kBothRows);
         });
}

template <class Op>
void run_unit(const Op& op, int64_t unit, Scratch& scratch) {
  const Pairs pairs = take_pairs(op, scratch);
  int64_t e = 0;
  for (; e < op.E; ++e) {
    const int64_t units = pairs.count(e) ? units_of(branch_of(op, e, pairs.count(e))) : 0;
    if (unit < units) break;
    unit -= units;
  }
  if (e == op.E) return;  // only if another thread writes weights meanwhile, which no program does
  const Branch branch = branch_of(op, e, pairs.count(e));
  const int64_t parts = gate_up_parts(branch);
  const Block block = block_in_parts(unit, branch.T, op.F, parts, rows_of_part(parts));
  const Pair* tile = pairs.of(e) + block.token;
  const auto at = [&](int64_t t) { return op.x + tile[t].token * op.D; };
  const bool there = scratch.holds(pairs.first[e] + block.token);
  const Input in = gather(scratch, at, block.tokens, branch.T, op.D, op.dtype, there);
  const Work work = take_work(scratch, branch.T, op.D);
  float* both = scratch.floats(token_tile(branch.T) * kBothRows);
  gate_and_up(branch, in, block, both, work);
  for (int64_t t = 0; t < block.tokens; ++t)
    for (int64_t part = 0; part < block.parts; ++part) {
      const float* gate = both + t * kBothRows + part * rows_of_part(block.parts);
      float* y = op.y + (tile[t].token * op.taken + tile[t].place) * op.F + block.row + part * block.apart;
      put_row(op, gate, gate + kTileRows, block.rows, y);
    }
  scratch.stored(block.values() * 4);
}

}  // namespace

int64_t units(const BranchGateUp& op) { return all_units(op); }
int64_t scratch_bytes(const BranchGateUp& op) { return most_scratch_bytes(op); }
int64_t flops(const BranchGateUp& op) { return 4 * op.T * op.taken * op.F * op.D; }
void run(const BranchGateUp& op, int64_t unit, Scratch& scratch) { run_unit(op, unit, scratch); }

int64_t units(const BranchGateUpGelu& op) { return all_units(op); }
int64_t scratch_bytes(const BranchGateUpGelu& op) { return most_scratch_bytes(op); }
int64_t flops(const BranchGateUpGelu& op) { return 4 * op.T * op.taken * op.F * op.D; }
void run(const BranchGateUpGelu& op, int64_t unit, Scratch& scratch) { run_unit(op, unit, scratch); }

int64_t units(const BranchGateUpClipped& op) { return all_units(op); }
int64_t scratch_bytes(const BranchGateUpClipped& op) { return most_scratch_bytes(op); }
int64_t flops(const BranchGateUpClipped& op) { return 4 * op.T * op.taken * op.F * op.D; }
void run(const BranchGateUpClipped& op, int64_t unit, Scratch& scratch) { run_unit(op, unit, scratch); }

COTERIE_KERNEL(branch_gate_up, BranchGateUp)
COTERIE_KERNEL(branch_gate_up_gelu, BranchGateUpGelu)
COTERIE_KERNEL(branch_gate_up_clipped, BranchGateUpClipped)

}  // namespace coterie::COTERIE_ISA
