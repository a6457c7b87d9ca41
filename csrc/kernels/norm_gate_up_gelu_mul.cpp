// norm_gate_up_gelu_mul: y = gelu(n @ gate.T) * (n @ up.T) with n = norm(x), or x without a norm.
#include "../gate_up.h"

namespace coterie::COTERIE_ISA {

int64_t units(const NormGateUpGeluMul& op) { return gate_up_units(op); }
int64_t scratch_bytes(const NormGateUpGeluMul& op) { return gate_up_scratch_bytes(op); }
int64_t flops(const NormGateUpGeluMul& op) { return 4 * op.T * op.F * op.D; }

void run(const NormGateUpGeluMul& op, int64_t unit, Scratch& scratch) {
  gate_up_unit(op, unit, scratch, [&](const float* gate, const float* up, int64_t N, float* y) {
    with_gelu(op.form, [&](auto gelu) { act_mul_row(gate, up, N, y, gelu); });
  });
}

COTERIE_KERNEL(norm_gate_up_gelu_mul, NormGateUpGeluMul)

}  // namespace coterie::COTERIE_ISA
