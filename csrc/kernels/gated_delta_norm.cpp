// gated_delta_norm: y = norm(gated_delta(..)) * silu(z), head by head, while the head's results are in the tile.
#include "../gated_delta.h"
#include "../math.h"

namespace coterie::COTERIE_ISA {

int64_t units(const GatedDeltaNorm& op) { return op.T == 0 ? 0 : op.B * op.H; }
int64_t scratch_bytes(const GatedDeltaNorm& op) { return delta_scratch(op); }
int64_t flops(const GatedDeltaNorm& op) { return delta_flops(op); }

void run(const GatedDeltaNorm& op, int64_t unit, Scratch& scratch) {
  const int64_t sequence = unit / op.H, head = unit % op.H, C = op.C;
  delta_head(op, sequence, head, scratch, [&](int64_t token, float* row) {
    norm_row(row, op.norm, op.norm_dtype, C, op.eps, op.offset, row);
    const int64_t at = (token * op.H + head) * C;
    int64_t c = 0;
    for (; c + W <= C; c += W) store(op.y + at + c, load(row + c) * silu(load(op.z + at + c)));
    if (c < C) store_part(op.y + at + c, load_part(row + c, C - c) * silu(load_part(op.z + at + c, C - c)), C - c);
    scratch.stored(C * 4);
  });
}

COTERIE_KERNEL(gated_delta_norm, GatedDeltaNorm)

}  // namespace coterie::COTERIE_ISA
