// linear_each: as linear, for rows in shares with a weight each.
#include "../linear.h"

namespace coterie::COTERIE_ISA {

int64_t units(const LinearEach& op) { return each_units(op); }
int64_t scratch_bytes(const LinearEach& op) { return each_scratch_bytes(op); }
int64_t flops(const LinearEach& op) { return 2 * op.T * op.N * op.K; }
void run(const LinearEach& op, int64_t unit, Scratch& scratch) { each_unit(op, unit, scratch); }

COTERIE_KERNEL(linear_each, LinearEach)

}  // namespace coterie::COTERIE_ISA
