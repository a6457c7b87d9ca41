// rope: rotate the halves of each head by position * inv_freq.
#include "../math.h"
#include "../op.h"

namespace coterie::COTERIE_ISA {

int64_t units(const Rope& op) { return tiles(op.T, kTileTokens); }
int64_t scratch_bytes(const Rope& op) { return 2 * static_cast<int64_t>(padded(static_cast<size_t>(op.C) * 2)); }
int64_t flops(const Rope& op) { return op.T * (3 * op.H + 40) * op.C; }

void run(const Rope& op, int64_t unit, Scratch& scratch) {
  const int64_t first = unit * kTileTokens, last = smaller(op.T, first + kTileTokens);
  float* cosines = scratch.floats(op.C / 2);
  float* sines = scratch.floats(op.C / 2);
  for (int64_t t = first; t < last; ++t) {
    rope_angles(op.positions[t], op.inv_freq, op.C / 2, op.scale, cosines, sines);
    for (int64_t row = t * op.H; row < (t + 1) * op.H; ++row)
      rope_row(op.x + row * op.C, cosines, sines, op.C, op.y + row * op.C);
  }
  scratch.stored((last - first) * op.H * op.C * 4);
}

COTERIE_KERNEL(rope, Rope)

}  // namespace coterie::COTERIE_ISA
