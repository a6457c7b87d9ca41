// branch_down: y[t] = the sum over the branches that token t takes, in their order, of weight * (x[t, p] @ down.T).
#include "../branches.h"

namespace coterie::COTERIE_ISA {

int64_t units(const BranchDown& op) { return down_units(op); }
int64_t scratch_bytes(const BranchDown& op) { return down_scratch_bytes(op); }
int64_t flops(const BranchDown& op) { return 2 * op.T * op.taken * op.F * op.D; }

void run(const BranchDown& op, int64_t unit, Scratch& scratch) {
  down_unit(op, unit, scratch, [](int64_t, int64_t) {});
}

COTERIE_KERNEL(branch_down, BranchDown)

}  // namespace coterie::COTERIE_ISA
