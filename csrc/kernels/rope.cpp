// rope: rotates the pairs (halves or neighbours) of the first `rotated` channels of each head by position * inv_freq;
// copies the others.
#include "../math.h"
#include "../op.h"

namespace coterie::COTERIE_ISA {

int64_t units(const Rope& op) { return tiles(op.T, kTileTokens); }
int64_t scratch_bytes(const Rope& op) { return 2 * static_cast<int64_t>(padded(static_cast<size_t>(op.C) * 2)); }
int64_t flops(const Rope& op) { return op.T * (3 * op.H + 40) * op.C; }

void run(const Rope& op, int64_t unit, Scratch& scratch) {
  const int64_t first = unit * kTileTokens, last = smaller(op.T, first + kTileTokens);
  const int64_t half = op.rotated / 2;
  float* cosines = scratch.floats(half);
  float* sines = scratch.floats(half);
  const size_t passing = static_cast<size_t>(op.C - op.rotated) * sizeof(float);
  for (int64_t t = first; t < last; ++t) {
    rope_angles(op.positions[t], op.inv_freq, half, op.scale, cosines, sines);
    for (int64_t at = t * op.H * op.C; at < (t + 1) * op.H * op.C; at += op.C) {
      rope_row(op.x + at, cosines, sines, half, op.interleaved, op.y + at);
      std::memcpy(op.y + at + op.rotated, op.x + at + op.rotated, passing);
    }
  }
  scratch.stored((last - first) * op.H * op.C * 4);
}

COTERIE_KERNEL(rope, Rope)

}  // namespace coterie::COTERIE_ISA
