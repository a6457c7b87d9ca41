// linear_add: y = (x @ weight.T + bias) * scale + residual, in one pass over the weight.
#include "../linear.h"

namespace coterie::COTERIE_ISA {

int64_t units(const LinearAdd& op) { return linear_units(op, all_rows(op)); }
int64_t scratch_bytes(const LinearAdd& op) { return linear_scratch_bytes(op, all_rows(op)); }
int64_t flops(const LinearAdd& op) { return 2 * op.T * op.N * op.K; }
void run(const LinearAdd& op, int64_t unit, Scratch& scratch) { linear_unit(op, all_rows(op), unit, scratch); }

COTERIE_KERNEL(linear_add, LinearAdd)

}  // namespace coterie::COTERIE_ISA
