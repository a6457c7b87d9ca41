// norm_rope_append: q and k are normalised, each head by itself or all of a token together, and the first `rotated`
// channels of each head (all, some or none) rotated; q is stored, k and v go to their pages.
// The normalised heads stay in the tile.
#include "../math.h"
#include "../kv8_rows.h"
#include "../op.h"

namespace coterie::COTERIE_ISA {

namespace {

// Normalises `width` numbers at a time of one token's heads, `step` apart,
// then rotates the first 2 * half channels of each head.
void norm_and_rotate(const float* x, int64_t step, bytes* norm, int64_t dtype, double eps, double offset, int64_t width, int64_t heads, int64_t C,
                     const float* cosines, const float* sines, int64_t half, int64_t interleaved, float* out) {
  for (int64_t i = 0; i < heads * C; i += width) norm_row(x + i / width * step, norm, dtype, width, eps, offset, out + i);
  for (int64_t head = 0; head < heads; ++head) rope_row(out + head * C, cosines, sines, half, interleaved, out + head * C);
}

}  // namespace

int64_t units(const NormRopeAppend& op) { return tiles(op.T, kTileTokens); }
int64_t scratch_bytes(const NormRopeAppend& op) { return 2 * bytes_of(op.rotated / 2) + bytes_of(op.K * op.C); }
int64_t flops(const NormRopeAppend& op) { return op.T * (7 * (op.H + op.K) + 40) * op.C; }

void run(const NormRopeAppend& op, int64_t unit, Scratch& scratch) {
  const int64_t first = unit * kTileTokens, last = smaller(op.T, first + kTileTokens), half = op.rotated / 2;
  float* cosines = scratch.floats(half);
  float* sines = scratch.floats(half);
  float* keys = scratch.floats(op.K * op.C);
  for (int64_t t = first; t < last; ++t) {
    rope_angles(op.positions[t], op.inv_freq, half, op.scale, cosines, sines);
    const int64_t queries = t * op.H * op.C, row = t * op.K * op.C, step = op.q_step == 0 ? op.q_width : op.q_step;
    norm_and_rotate(op.q_in + queries / op.q_width * step + op.q_first, step, op.q_norm, op.q_norm_dtype, op.q_eps, op.offset, op.q_width,
                    op.H, op.C, cosines, sines, half, op.interleaved, op.q + queries);
    norm_and_rotate(op.k_in + row, op.k_width, op.k_norm, op.k_norm_dtype, op.k_eps, op.offset, op.k_width, op.K, op.C, cosines, sines, half,
                    op.interleaved, keys);
    for (int64_t head = 0; head < op.K; ++head) {
      store_row(row_address(op, op.sequence[t], op.positions[t], kKey, head), keys + head * op.C, op.C, op.kv_dtype);
      store_row(row_address(op, op.sequence[t], op.positions[t], kValue, head), op.v + row + head * op.C, op.C, op.kv_dtype);
    }
  }
  scratch.stored((last - first) * (op.C * op.H * 4 + 2 * op.K * page_row_bytes(op.kv_dtype, op.C)));
}

COTERIE_KERNEL(norm_rope_append, NormRopeAppend)

}  // namespace coterie::COTERIE_ISA
