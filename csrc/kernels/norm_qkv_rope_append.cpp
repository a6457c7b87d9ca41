// norm_qkv_rope_append: q, k, v = linear(norm(x)), the norm being optional; heads of q and k are normalised (optional)
// and their first `rotated` channels (all, some or none) rotated; q is stored, k and v go to their pages. The
// normalised tokens and the heads stay in the tile.
#include "../math.h"
#include "../kv8_rows.h"
#include "../op.h"

namespace coterie::COTERIE_ISA {

namespace {

constexpr int64_t kUnitChannels = 64;  // rows of a weight per unit, about: in whole heads

struct Projection {
  bytes* weight;
  int64_t dtype;
  bytes* bias;
  int64_t bias_dtype;
  bytes* norm;
  int64_t norm_dtype;
  double eps;
  int64_t head;  // within q, k or v
};

int64_t heads_per_unit(const NormQkvRopeAppend& op) { return op.C >= kUnitChannels ? 1 : kUnitChannels / op.C; }

// Heads are numbered through q, then k, then v.
Projection projection_of(const NormQkvRopeAppend& op, int64_t head) {
  if (head < op.H) return {op.wq, op.wq_dtype, op.bq, op.bq_dtype, op.q_norm, op.q_norm_dtype, op.q_eps, head};
  head -= op.H;
  if (head < op.K) return {op.wk, op.wk_dtype, op.bk, op.bk_dtype, op.k_norm, op.k_norm_dtype, op.k_eps, head};
  return {op.wv, op.wv_dtype, op.bv, op.bv_dtype, nullptr, 0, 0.0, head - op.K};
}

Forms forms(const NormQkvRopeAppend& op) { return forms_of(op.T, op.wq_dtype, op.wk_dtype, op.wv_dtype); }

}  // namespace

int64_t units(const NormQkvRopeAppend& op) {
  return block_units(op.T, op.H + 2 * op.K, heads_per_unit(op));
}

int64_t scratch_bytes(const NormQkvRopeAppend& op) {
  const int64_t tile = token_tile(op.T);
  return tile_bytes(op.T, op.D) + copies_bytes(forms(op), op.T, op.D) + work_bytes(op.T, op.D) + 2 * bytes_of(tile * (op.C / 2)) + bytes_of(tile * op.C);
}

int64_t flops(const NormQkvRopeAppend& op) { return 2 * op.T * op.D * (op.H + 2 * op.K) * op.C; }

void run(const NormQkvRopeAppend& op, int64_t unit, Scratch& scratch) {
  const Block block = block_of(unit, op.T, op.H + 2 * op.K, heads_per_unit(op));
  const int64_t first = block.token, tokens = block.tokens, half = op.rotated / 2;
  const int64_t tile = token_tile(op.T), stride = tile_stride(op.T, op.D);
  float* x = take_tile(scratch, op.T, op.D);
  const Copies copies = take_copies(scratch, forms(op), op.T, op.D);
  float* cosines = scratch.floats(tile * half);
  float* sines = scratch.floats(tile * half);
  const Work work = take_work(scratch, op.T, op.D);
  float* out = scratch.floats(tile * op.C);
  if (!scratch.holds(first)) {
    for (int64_t t = 0; t < tokens; ++t) {
      norm_first(op, op.x + (first + t) * op.D, op.D, x + t * stride);
      pad_row(x + t * stride, op.T, op.D);
      copies.put(t, tokens, x + t * stride, op.D);
      rope_angles(op.positions[first + t], op.inv_freq, half, op.scale, cosines + t * half, sines + t * half);
    }
  }
  for (int64_t head = block.row; head < block.row + block.rows; ++head) {
    const Projection p = projection_of(op, head);
    const bool is_q = head < op.H, is_v = head >= op.H + op.K;
    bytes* w = weight_row(p.weight, p.dtype, op.D, p.head * op.C);
    dot_tile({x, stride, copies}, tokens, w, p.dtype, op.C, op.D, out, op.C, work);
    add_bias(out, op.C, tokens, p.bias, p.bias_dtype, p.head * op.C, op.C);
    for (int64_t t = 0; t < tokens; ++t) {
      float* row = out + t * op.C;
      const int64_t token = first + t;
      if (p.norm != nullptr) norm_row(row, p.norm, p.norm_dtype, op.C, p.eps, op.offset, row);
      if (!is_v) rope_row(row, cosines + t * half, sines + t * half, half, op.interleaved, row);
      if (is_q) {
        std::memcpy(op.q + (token * op.H + p.head) * op.C, row, static_cast<size_t>(op.C) * sizeof(float));
      } else {
        uint8_t* page = row_address(op, op.sequence[token], op.positions[token], is_v ? kValue : kKey, p.head);
        store_row(page, row, op.C, op.kv_dtype);
      }
    }
    scratch.stored(tokens * (is_q ? 4 * op.C : page_row_bytes(op.kv_dtype, op.C)));
  }
}

COTERIE_KERNEL(norm_qkv_rope_append, NormQkvRopeAppend)

}  // namespace coterie::COTERIE_ISA
