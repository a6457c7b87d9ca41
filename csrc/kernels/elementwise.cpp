// add, mul, silu, gelu, softcap, relu_squared: y = a + b, y = a * b, y = x * sigmoid(x), y = x * Phi(x),
// y = cap * tanh(x / cap), y = x * x where x > 0, else 0.
// mul_part: y = a * some columns of b. mul_one: y = x * a scalar.
// mul_row: y = x * a factor per channel. xielu: see math.h.
#include "../math.h"
#include "../op.h"

namespace coterie::COTERIE_ISA {

namespace {

constexpr int64_t kChunk = 8192;  // elements per unit

// y[i] = body(a[i], b[i]) for the elements of one unit; `total` elements in all.
template <class Body>
void map(const float* a, const float* b, float* y, int64_t total, int64_t unit, Scratch& scratch, Body body) {
  int64_t i = unit * kChunk;
  const int64_t last = smaller(total, i + kChunk);
  scratch.stored((last - i) * 4);
  for (; i + W <= last; i += W) store(y + i, body(load(a + i), load(b + i)));
  if (i < last) store_part(y + i, body(load_part(a + i, last - i), load_part(b + i, last - i)), last - i);
}

// y = a * b for the tokens of one unit, N numbers each; rows of b are `b_step` apart.
void mul_rows(const float* a, const float* b, int64_t b_step, float* y, int64_t T, int64_t N, int64_t unit, Scratch& scratch) {
  const int64_t first = unit * kTileTokens, last = smaller(T, first + kTileTokens);
  for (int64_t t = first; t < last; ++t) {
    const float *at = a + t * N, *factors = b + t * b_step;
    float* out = y + t * N;
    int64_t n = 0;
    for (; n + W <= N; n += W) store(out + n, load(at + n) * load(factors + n));
    if (n < N) store_part(out + n, load_part(at + n, N - n) * load_part(factors + n, N - n), N - n);
  }
  scratch.stored((last - first) * N * 4);
}

// Never takes the exponential of a positive number, so that it needs no threshold. Rounded otherwise than softplus() of
// gated_delta.h, so neither can replace the other without changing bits.
float softplus(float x) { return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x)); }

}  // namespace

int64_t units(const Add& op) { return tiles(op.T * op.N, kChunk); }
int64_t scratch_bytes(const Add&) { return 0; }
int64_t flops(const Add& op) { return op.T * op.N; }
void run(const Add& op, int64_t unit, Scratch& scratch) {
  map(op.a, op.b, op.y, op.T * op.N, unit, scratch, [](V a, V b) { return a + b; });
}

int64_t units(const Mul& op) { return tiles(op.T * op.N, kChunk); }
int64_t scratch_bytes(const Mul&) { return 0; }
int64_t flops(const Mul& op) { return op.T * op.N; }
void run(const Mul& op, int64_t unit, Scratch& scratch) {
  map(op.a, op.b, op.y, op.T * op.N, unit, scratch, [](V a, V b) { return a * b; });
}

int64_t units(const Silu& op) { return tiles(op.T * op.N, kChunk); }
int64_t scratch_bytes(const Silu&) { return 0; }
int64_t flops(const Silu& op) { return 10 * op.T * op.N; }
void run(const Silu& op, int64_t unit, Scratch& scratch) {
  map(op.x, op.x, op.y, op.T * op.N, unit, scratch, [](V x, V) { return silu(x); });
}

int64_t units(const Gelu& op) { return tiles(op.T * op.N, kChunk); }
int64_t scratch_bytes(const Gelu&) { return 0; }
int64_t flops(const Gelu& op) { return 15 * op.T * op.N; }
void run(const Gelu& op, int64_t unit, Scratch& scratch) {
  with_gelu(op.form, [&](auto gelu) { map(op.x, op.x, op.y, op.T * op.N, unit, scratch, [&](V x, V) { return gelu(x); }); });
}

int64_t units(const Softcap& op) { return tiles(op.T * op.N, kChunk); }
int64_t scratch_bytes(const Softcap&) { return 0; }
int64_t flops(const Softcap& op) { return 15 * op.T * op.N; }
void run(const Softcap& op, int64_t unit, Scratch& scratch) {
  const V cap = splat(static_cast<float>(op.cap));
  map(op.x, op.x, op.y, op.T * op.N, unit, scratch, [&](V x, V) { return softcap(x, cap); });
}

int64_t units(const ReluSquared& op) { return tiles(op.T * op.N, kChunk); }
int64_t scratch_bytes(const ReluSquared&) { return 0; }
int64_t flops(const ReluSquared& op) { return 2 * op.T * op.N; }
void run(const ReluSquared& op, int64_t unit, Scratch& scratch) {
  map(op.x, op.x, op.y, op.T * op.N, unit, scratch, [](V x, V) { return x > V{} ? x * x : x < V{} ? V{} : x; });
}

int64_t units(const MulPart& op) { return tiles(op.T, kTileTokens); }
int64_t scratch_bytes(const MulPart&) { return 0; }
int64_t flops(const MulPart& op) { return op.T * op.N; }
void run(const MulPart& op, int64_t unit, Scratch& scratch) {
  mul_rows(op.a, op.b + op.b_first, op.b_step, op.y, op.T, op.N, unit, scratch);
}

int64_t units(const MulRow& op) { return tiles(op.T, kTileTokens); }
int64_t scratch_bytes(const MulRow&) { return 0; }
int64_t flops(const MulRow& op) { return op.T * op.N; }
void run(const MulRow& op, int64_t unit, Scratch& scratch) { mul_rows(op.x, op.row, 0, op.y, op.T, op.N, unit, scratch); }

int64_t units(const MulOne& op) { return tiles(op.T * op.N, kChunk); }
int64_t scratch_bytes(const MulOne&) { return 0; }
int64_t flops(const MulOne& op) { return op.T * op.N; }
void run(const MulOne& op, int64_t unit, Scratch& scratch) {
  const V factor = splat(widen_number(op.weight, op.weight_dtype));
  map(op.x, op.x, op.y, op.T * op.N, unit, scratch, [&](V x, V) { return x * factor; });
}

int64_t units(const Xielu& op) { return tiles(op.T * op.N, kChunk); }
int64_t scratch_bytes(const Xielu&) { return 0; }
int64_t flops(const Xielu& op) { return 25 * op.T * op.N; }
void run(const Xielu& op, int64_t unit, Scratch& scratch) {
  const float beta = widen_number(op.beta, op.beta_dtype), eps = widen_number(op.eps, op.eps_dtype);
  const float above = softplus(widen_number(op.alpha_p, op.alpha_p_dtype)), below = beta + softplus(widen_number(op.alpha_n, op.alpha_n_dtype));
  map(op.x, op.x, op.y, op.T * op.N, unit, scratch, [&](V x, V) { return xielu(x, splat(above), splat(below), splat(beta), splat(eps)); });
}

COTERIE_KERNEL(add, Add)
COTERIE_KERNEL(mul, Mul)
COTERIE_KERNEL(silu, Silu)
COTERIE_KERNEL(gelu, Gelu)
COTERIE_KERNEL(softcap, Softcap)
COTERIE_KERNEL(relu_squared, ReluSquared)
COTERIE_KERNEL(mul_part, MulPart)
COTERIE_KERNEL(mul_one, MulOne)
COTERIE_KERNEL(mul_row, MulRow)
COTERIE_KERNEL(xielu, Xielu)

}  // namespace coterie::COTERIE_ISA
