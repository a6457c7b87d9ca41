// linear: y = (x @ weight.T + bias) * scale.
#include "../linear.h"

namespace coterie::COTERIE_ISA {

int64_t units(const Linear& op) { return linear_units(op, all_rows(op)); }
int64_t scratch_bytes(const Linear& op) { return linear_scratch_bytes(op, all_rows(op)); }
int64_t flops(const Linear& op) { return 2 * op.T * op.N * op.K; }
void run(const Linear& op, int64_t unit, Scratch& scratch) { linear_unit(op, all_rows(op), unit, scratch); }

COTERIE_KERNEL(linear, Linear)

}  // namespace coterie::COTERIE_ISA
