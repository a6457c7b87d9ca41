// linear_add_each: as linear_add, for rows in shares with a weight each.
#include "../linear.h"

namespace coterie::COTERIE_ISA {

int64_t units(const LinearAddEach& op) { return each_units(op); }
int64_t scratch_bytes(const LinearAddEach& op) { return each_scratch_bytes(op); }
int64_t flops(const LinearAddEach& op) { return 2 * op.T * op.N * op.K; }
void run(const LinearAddEach& op, int64_t unit, Scratch& scratch) { each_unit(op, unit, scratch); }

COTERIE_KERNEL(linear_add_each, LinearAddEach)

}  // namespace coterie::COTERIE_ISA
