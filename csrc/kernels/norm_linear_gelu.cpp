// norm_linear_gelu: y = gelu(n @ weight.T + bias) with n = norm(x), or x without a norm; n and the product stay in the tile.
#include "../math.h"
#include "../op.h"

namespace coterie::COTERIE_ISA {

namespace {

Forms forms(const NormLinearGelu& op) { return forms_of(op.T, op.weight_dtype); }

}  // namespace

int64_t units(const NormLinearGelu& op) { return units_in_parts(op.T, op.N, parts_of(op.T, op.weight_dtype)); }
int64_t scratch_bytes(const NormLinearGelu& op) {
  return tile_bytes(op.T, op.D) + copies_bytes(forms(op), op.T, op.D) + work_bytes(op.T, op.D) + bytes_of(token_tile(op.T) * kTileRows);
}
int64_t flops(const NormLinearGelu& op) { return 2 * op.T * op.N * op.D; }

void run(const NormLinearGelu& op, int64_t unit, Scratch& scratch) {
  const Block block = block_in_parts(unit, op.T, op.N, parts_of(op.T, op.weight_dtype));
  const int64_t stride = tile_stride(op.T, op.D), part_at = rows_of_part(block.parts);
  float* x = take_tile(scratch, op.T, op.D);
  const Copies copies = take_copies(scratch, forms(op), op.T, op.D);
  const Work work = take_work(scratch, op.T, op.D);
  float* out = scratch.floats(token_tile(op.T) * kTileRows);
  if (!scratch.holds(block.token)) {
    for (int64_t t = 0; t < block.tokens; ++t) {
      norm_first(op, op.x + (block.token + t) * op.D, op.D, x + t * stride);
      pad_row(x + t * stride, op.T, op.D);
      copies.put(t, block.tokens, x + t * stride, op.D);
    }
  }
  const Weight weight{op.weight, op.weight_dtype, op.bias, op.bias_dtype, 1.0};
  linear_block({x, stride, copies}, block, weight, op.D, out, kTileRows, part_at, work);
  with_gelu(op.form, [&](auto gelu) {
    for (int64_t t = 0; t < block.tokens; ++t)
      for (int64_t part = 0; part < block.parts; ++part) {
        float* y = op.y + (block.token + t) * op.N + block.row + part * block.apart;
        const float* sums = out + t * kTileRows + part * part_at;
        int64_t n = 0;
        for (; n + W <= block.rows; n += W) store(y + n, gelu(load(sums + n)));
        if (n < block.rows) store_part(y + n, gelu(load_part(sums + n, block.rows - n)), block.rows - n);
      }
  });
  scratch.stored(block.values() * 4);
}

COTERIE_KERNEL(norm_linear_gelu, NormLinearGelu)

}  // namespace coterie::COTERIE_ISA
