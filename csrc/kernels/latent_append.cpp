// latent_append: stores a token's latent numbers, normalised, and the key that all heads share,
// rotated, as one row in its page.
#include "../math.h"
#include "../kv8_rows.h"
#include "../op.h"

namespace coterie::COTERIE_ISA {

int64_t units(const LatentAppend& op) { return tiles(op.T, kTileTokens); }
int64_t scratch_bytes(const LatentAppend& op) { return 2 * bytes_of((op.C - op.latent) / 2) + bytes_of(op.C); }
int64_t flops(const LatentAppend& op) { return op.T * (7 * op.C + 40 * (op.C - op.latent)); }

void run(const LatentAppend& op, int64_t unit, Scratch& scratch) {
  const int64_t first = unit * kTileTokens, last = smaller(op.T, first + kTileTokens), half = (op.C - op.latent) / 2;
  float* cosines = scratch.floats(half);
  float* sines = scratch.floats(half);
  float* row = scratch.floats(op.C);
  for (int64_t t = first; t < last; ++t) {
    const float* x = op.x + t * op.C;
    rope_angles(op.positions[t], op.inv_freq, half, op.scale, cosines, sines);
    norm_row(x, op.norm, op.norm_dtype, op.latent, op.eps, 0.0, row);
    rope_row(x + op.latent, cosines, sines, half, op.interleaved, row + op.latent);
    store_row(row_address(op, op.sequence[t], op.positions[t], kKey, 0), row, op.C, op.kv_dtype);
  }
  scratch.stored((last - first) * page_row_bytes(op.kv_dtype, op.C));
}

COTERIE_KERNEL(latent_append, LatentAppend)

}  // namespace coterie::COTERIE_ISA
