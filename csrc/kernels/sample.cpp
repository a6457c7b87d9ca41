// sample: draws a token per row: argmax at temperature 0, else from the softmax
// after temperature, top-k, min-p and top-p.
// A row's Changes are applied to its logits first, and undone afterwards. A row with a NaN has no order: it draws -1.
// The random number is a function of (seed, position). Compiled once:
// it uses the standard library, and vectors that every machine has.
#include <algorithm>
#include <cmath>
#include <optional>

#include "../changes.h"
#include "../draw_order.h"
#include "../kernel.h"

namespace coterie {

namespace {

struct Settings {
  double temperature;
  int64_t top_k;
  double top_p, min_p;
  uint64_t seed;
  Changes* changes;
};
static_assert(sizeof(Settings) == kSettingWords * 8);

// Counter-based, so that no state is kept: splitmix64 at `position` in the seed's stream.
double uniform(uint64_t seed, int64_t position) {
  uint64_t x = seed + 0x9E3779B97F4A7C15u * (static_cast<uint64_t>(position) + 1);
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return static_cast<double>((x ^ (x >> 31)) >> 11) * 0x1p-53;
}

// The greatest logit, several at a time; nullopt if one is NaN.
std::optional<float> highest_of(const float* logits, int64_t V) {
  constexpr int64_t kChains = 4, kStep = 4 * kChains;
  Floats best[kChains];
  Mask is_nan[kChains];
  for (int k = 0; k < kChains; ++k) best[k] = Floats{} + logits[0], is_nan[k] = Mask(best[k] != best[k]);
  int64_t i = 0;
  for (; i + kStep <= V; i += kStep)
    for (int k = 0; k < kChains; ++k) {
      const Floats x = floats_at(logits + i + 4 * k);
      const Mask higher = x > best[k];
      best[k] = Floats((Mask(x) & higher) | (Mask(best[k]) & ~higher));
      is_nan[k] |= Mask(x != x);
    }
  float highest = logits[0];
  bool found_nan = false;
  for (int k = 0; k < kChains; ++k)
    for (int lane = 0; lane < 4; ++lane) {
      highest = best[k][lane] > highest ? best[k][lane] : highest;
      found_nan = found_nan || is_nan[k][lane] != 0;
    }
  for (; i < V; ++i) {
    highest = logits[i] > highest ? logits[i] : highest;
    found_nan = found_nan || logits[i] != logits[i];
  }
  if (found_nan) return std::nullopt;
  return highest;
}

int32_t draw(const float* logits, float highest_logit, int64_t V, const Settings& s, double u, Scratch& scratch) {
  auto* indices = reinterpret_cast<int32_t*>(scratch.floats(V + 1));
  auto* kept = reinterpret_cast<double*>(scratch.floats(2 * V));
  const auto temperature = static_cast<float>(s.temperature);
  const Scaled row{logits, V, temperature, highest_logit / temperature};  // rounding preserves the order
  const int64_t keep = s.top_k > 0 ? std::min(s.top_k, V) : V;
  Order order(row, indices, keep);

  const double total = keep < V ? order.weigh_kept() : weigh(row);
  double mass = 0;
  int64_t count = 0;
  const bool limited = s.top_p < 1.0 || s.min_p > 0.0;
  int32_t token = 0;
  if (!limited) {
    for (; count < keep && mass <= u; ++count) {
      token = order.next();
      mass += row.weight(token) / total;
    }
    return token;
  }
  for (; count < keep && (count == 0 || mass < s.top_p); ++count) {
    const double p = row.weight(order.next()) / total;
    if (count > 0 && p < s.min_p * kept[0]) break;
    kept[count] = p;
    mass += p;
  }
  double cumulative = 0;
  for (int64_t i = 0; i < count; ++i) {
    cumulative += kept[i];
    if (cumulative > u * mass) return order.at(i);
  }
  return order.at(count - 1);
}

int64_t units(const Sample& op) { return op.R; }
int64_t scratch_bytes(const Sample& op) { return 4 * static_cast<int64_t>(padded(static_cast<size_t>(op.V + 1) * 4)); }
int64_t flops(const Sample& op) { return 4 * op.R * op.V; }

int32_t token_of(const Sample& op, int64_t unit, const Settings& settings, const float* logits, Scratch& scratch) {
  const std::optional<float> highest = highest_of(logits, op.V);
  if (!highest.has_value()) return -1;
  if (settings.temperature == 0.0) return static_cast<int32_t>(std::find(logits, logits + op.V, *highest) - logits);
  const double u = uniform(settings.seed, op.positions[op.rows[unit]]);
  return draw(logits, *highest, op.V, settings, u, scratch);
}

void run(const Sample& op, int64_t unit, Scratch& scratch) {
  Settings settings;
  std::memcpy(&settings, op.settings + unit * kSettingWords, sizeof settings);
  float* logits = op.logits + unit * op.V;
  scratch.stored(4);
  if (settings.changes == nullptr) {
    op.tokens[unit] = token_of(op, unit, settings, logits, scratch);
    return;
  }
  float* were = scratch.floats(op.V);
  change(settings.changes, logits, were);
  op.tokens[unit] = token_of(op, unit, settings, logits, scratch);
  change_back(settings.changes, logits, were);
}

}  // namespace

COTERIE_KERNEL(sample, Sample)

}  // namespace coterie
