// norm_gate_up_silu_mul: y = silu(n @ gate.T) * (n @ up.T) with n = norm(x), or x without a norm.
#include "../gate_up.h"

namespace coterie::COTERIE_ISA {

int64_t units(const NormGateUpSiluMul& op) { return gate_up_units(op); }
int64_t scratch_bytes(const NormGateUpSiluMul& op) { return gate_up_scratch_bytes(op); }
int64_t flops(const NormGateUpSiluMul& op) { return 4 * op.T * op.F * op.D; }

void run(const NormGateUpSiluMul& op, int64_t unit, Scratch& scratch) {
  gate_up_unit(op, unit, scratch, [](const float* gate, const float* up, int64_t N, float* y) {
    act_mul_row(gate, up, N, y, [](V x) { return silu(x); });
  });
}

COTERIE_KERNEL(norm_gate_up_silu_mul, NormGateUpSiluMul)

}  // namespace coterie::COTERIE_ISA
