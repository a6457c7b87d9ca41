// branch_down_add: as branch_down, and then the residual is added.
#include "../branches.h"

namespace coterie::COTERIE_ISA {

int64_t units(const BranchDownAdd& op) { return down_units(op); }
int64_t scratch_bytes(const BranchDownAdd& op) { return down_scratch_bytes(op); }
int64_t flops(const BranchDownAdd& op) { return 2 * op.T * op.taken * op.F * op.D; }

void run(const BranchDownAdd& op, int64_t unit, Scratch& scratch) {
  down_unit(op, unit, scratch, [&](int64_t at, int64_t count) {
    for (int64_t n = at; n < at + count; ++n) op.y[n] = op.residual[n] + op.y[n];
  });
}

COTERIE_KERNEL(branch_down_add, BranchDownAdd)

}  // namespace coterie::COTERIE_ISA
