// causal_conv: y = silu(bias + the sum over taps of weight * x of a token and of those before it in its sequence),
// channel by channel, or without silu; the bias is optional.
// The last inputs of each sequence are kept, [taps - 1][channels of a unit] in each unit; before position 0 all is 0.
#include <algorithm>

#include "../math.h"
#include "../op.h"
#include "../state.h"

namespace coterie::COTERIE_ISA {

namespace {

constexpr int64_t kChannels = 256;  // channels of one sequence per unit
constexpr int64_t kTaps = 4;        // of all published models, for which widening has a loop of its own

// out[tap][channel] of the channels from `first` on; in the file the taps of a channel are contiguous.
template <DType D>
void widen_taps(bytes* weight, int64_t first, int64_t width, int64_t taps, float* out) {
  constexpr int64_t size = D == DType::f32 ? 4 : 2;
  bytes* at = weight + first * taps * size;
  if (taps == kTaps) {
    for (int64_t c = 0; c < width; ++c, at += kTaps * size)
      for (int64_t tap = 0; tap < kTaps; ++tap) out[tap * kChannels + c] = widen<D>(at + tap * size);
    return;
  }
  for (int64_t c = 0; c < width; ++c)
    for (int64_t tap = 0; tap < taps; ++tap, at += size) out[tap * kChannels + c] = widen<D>(at);
}

// Calls `body` with each piece of `width` floats from channel `first` on that lies within one unit: the address of a
// tap's kept inputs, the piece's offset from `first`, and its length.
template <class Body>
void each_kept(const CausalConv& op, int64_t sequence, int64_t tap, int64_t first, int64_t width, Body body) {
  const int64_t each = op.unit_bytes / 4 / (op.taps - 1);
  for (int64_t done = 0; done < width;) {
    const int64_t channel = first + done, count = smaller(width - done, each - channel % each);
    body(state_unit(op, sequence, channel / each) + tap * each + channel % each, done, count);
    done += count;
  }
}

// y = silu(the sum of taps) of one token, or without silu.
// `rows`: the inputs before it, oldest first. `bias`: may be null.
template <bool kPlain>
void convolve(const float* const* rows, const float* x, const float* weights, const float* bias, int64_t taps, int64_t width, float* y) {
  const auto sums = [&](auto read, int64_t c) {
    V acc = read(weights + c) * read(rows[0] + c);
    if (bias != nullptr) acc = acc + read(bias + c);
    for (int64_t tap = 1; tap < taps - 1; ++tap) acc = fma(read(weights + tap * kChannels + c), read(rows[tap] + c), acc);
    acc = fma(read(weights + (taps - 1) * kChannels + c), read(x + c), acc);
    return kPlain ? acc : silu(acc);
  };
  int64_t c = 0;
  for (; c + W <= width; c += W) store(y + c, sums([](const float* at) { return load(at); }, c));
  if (c < width) store_part(y + c, sums([&](const float* at) { return load_part(at, width - c); }, c), width - c);
}

}  // namespace

int64_t units(const CausalConv& op) { return op.T == 0 ? 0 : op.B * tiles(op.N, kChannels); }
int64_t scratch_bytes(const CausalConv& op) {
  return bytes_of(op.taps * kChannels) + bytes_of((op.taps - 1) * kChannels) + 2 * bytes_of(kChannels) +
         bytes_of(2 * op.taps);
}
int64_t flops(const CausalConv& op) { return (2 * op.taps + 10) * op.T * op.N; }

void run(const CausalConv& op, int64_t unit, Scratch& scratch) {
  const int64_t chunks = tiles(op.N, kChannels), sequence = unit / chunks, first = unit % chunks * kChannels;
  const int64_t width = smaller(kChannels, op.N - first), past = op.taps - 1;
  float* weights = scratch.floats(op.taps * kChannels);
  float* kept = scratch.floats(past * kChannels);
  float* zeros = scratch.floats(kChannels);
  float* bias = scratch.floats(kChannels);
  auto** rows = reinterpret_cast<const float**>(scratch.floats(2 * op.taps));
  with_dtype(op.weight_dtype, [&]<DType D>() { widen_taps<D>(op.weight, first, width, op.taps, weights); });
  if (op.bias == nullptr) bias = nullptr;
  else with_dtype(op.bias_dtype, [&]<DType D>() {
    for (int64_t c = 0; c < width; ++c) bias[c] = widen<D>(op.bias + (first + c) * size_of(op.bias_dtype));
  });
  std::memset(zeros, 0, kChannels * sizeof(float));
  for (int64_t tap = 0; tap < past; ++tap) {
    rows[tap] = kept + tap * kChannels;
    each_kept(op, sequence, tap, first, width, [&](const float* at, int64_t to, int64_t count) {
      std::memcpy(kept + tap * kChannels + to, at, static_cast<size_t>(count) * sizeof(float));
    });
  }
  int64_t tokens = 0;
  each_tokens<1>(op, sequence, [&](const int64_t* token, int64_t) {
    const float* x = op.x + *token * op.N + first;
    if (op.positions[*token] == 0) std::fill(rows, rows + past, zeros);
    float* y = op.y + *token * op.N + first;
    if (op.plain) convolve<true>(rows, x, weights, bias, op.taps, width, y);
    else convolve<false>(rows, x, weights, bias, op.taps, width, y);
    std::move(rows + 1, rows + past, rows);
    rows[past - 1] = x;
    ++tokens;
  });
  for (int64_t tap = 0; tap < past; ++tap)
    each_kept(op, sequence, tap, first, width, [&](float* at, int64_t from, int64_t count) {
      std::memcpy(at, rows[tap] + from, static_cast<size_t>(count) * sizeof(float));
    });
  scratch.stored((tokens + past) * width * 4);
}

COTERIE_KERNEL(causal_conv, CausalConv)

}  // namespace coterie::COTERIE_ISA
