// branch_gate_up: y[t, p] = silu(x[t] @ gate.T) * (x[t] @ up.T) of the p-th branch that token t takes, in the order of branches.
#include "../branches.h"
#include "../gate_up.h"

namespace coterie::COTERIE_ISA {

namespace {

// A branch and the tokens that take it, as gate_up.h has operands.
struct Branch {
  bytes *gate, *up;
  int64_t gate_dtype, up_dtype, T, D, F;
  bytes *gate_bias = nullptr, *up_bias = nullptr;
  int64_t gate_bias_dtype = 0, up_bias_dtype = 0;
};

Branch branch_of(const BranchGateUp& op, int64_t e, int64_t tokens) {
  return {op.branches[e], op.branches[op.E + e], op.dtype, op.dtype, tokens, op.D, op.F};
}

}  // namespace

int64_t units(const BranchGateUp& op) {
  int64_t units = 0;
  for (int64_t e = 0; e < op.E; ++e)
    if (const int64_t n = count_taken(op, e)) units += gate_up_units(branch_of(op, e, n));
  return units;
}

int64_t scratch_bytes(const BranchGateUp& op) {
  return pairs_bytes(op.T, op.E, op.taken) + most_bytes(op.T, [&](int64_t n) {
           return input_bytes(n, op.D, forms_of(n, op.dtype)) + work_bytes(n, op.D) + bytes_of(token_tile(n) * kBothRows);
         });
}

int64_t flops(const BranchGateUp& op) { return 4 * op.T * op.taken * op.F * op.D; }

void run(const BranchGateUp& op, int64_t unit, Scratch& scratch) {
  const Pairs pairs = take_pairs(op, scratch);
  int64_t e = 0;
  for (; e < op.E; ++e) {
    const int64_t units = pairs.count(e) ? gate_up_units(branch_of(op, e, pairs.count(e))) : 0;
    if (unit < units) break;
    unit -= units;
  }
  if (e == op.E) return;  // another thread writes weights meanwhile: never so in a program
  const Branch branch = branch_of(op, e, pairs.count(e));
  const Block block = block_in_parts(unit, branch.T, op.F, gate_up_parts(branch));
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
      act_mul_row(gate, gate + kTileRows, block.rows, y, [](V x) { return silu(x); });
    }
  scratch.stored(block.values() * 4);
}

COTERIE_KERNEL(branch_gate_up, BranchGateUp)

}  // namespace coterie::COTERIE_ISA
