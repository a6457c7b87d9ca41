// How evenly a step's work is divided: for each region the longest share of N threads
// over the mean, by the kernels' own unit counts.
#include <cmath>
#include <cstdlib>

#include "plain.h"

namespace testing {

namespace {

struct Shape {
  const char* name;
  int64_t D, F, H, K, C, V;
};

constexpr Shape kShapes[] = {
    {"135M", 576, 1536, 9, 3, 64, 49'152},         // HuggingFaceTB/SmolLM-135M
    {"0.5B", 896, 4864, 14, 2, 64, 151'936},       // Qwen/Qwen2.5-0.5B
    {"1.5B", 1536, 8960, 12, 2, 128, 151'936},     // Qwen/Qwen2.5-1.5B
};
constexpr int64_t kThreads[] = {8, 16, 32, 64};

// Assumes that all units of a region take the same time, and that idle threads steal units.
double longest_over_mean(int64_t units, int64_t threads) { return static_cast<double>((units + threads - 1) / threads * threads) / static_cast<double>(units); }

struct Region {
  const char* name;
  int64_t units, rows, columns;  // of its weights
};

// One decode step of one layer, without attention. Units are counted from sizes alone.
std::vector<Region> layer_of(const Isa& isa, const Shape& s, int64_t T, DType dtype) {
  const auto type = static_cast<int64_t>(dtype);
  NormQkvRopeAppend qkv{};
  qkv.wq_dtype = qkv.wk_dtype = qkv.wv_dtype = type, qkv.T = T, qkv.D = s.D, qkv.H = s.H, qkv.K = s.K, qkv.C = s.C;
  NormGateUpSiluMul both{};
  both.gate_dtype = both.up_dtype = type, both.T = T, both.D = s.D, both.F = s.F;
  const auto add = [&](int64_t from) {
    LinearAdd op{};
    op.weight_dtype = type, op.T = T, op.N = s.D, op.K = from;
    return row_of(Opcode::linear_add, op);
  };
  const auto units = [&](const Row& row) { return isa.kernel(row.opcode).units(row); };
  return {{"qkv", units(row_of(Opcode::norm_qkv_rope_append, qkv)), (s.H + 2 * s.K) * s.C, s.D},
          {"o", units(add(s.H * s.C)), s.D, s.H * s.C},
          {"gate, up", units(row_of(Opcode::norm_gate_up_silu_mul, both)), 2 * s.F, s.D},
          {"down", units(add(s.F)), s.D, s.F}};
}

// A layer's time with the longest shares, over that with even ones.
double layer_over_mean(const std::vector<Region>& layer, int64_t threads) {
  double longest = 0, mean = 0;
  for (const Region& region : layer) {
    const double weights = static_cast<double>(region.rows * region.columns);
    longest += weights * longest_over_mean(region.units, threads), mean += weights;
  }
  return longest / mean;
}

void test_layers() {
  constexpr double kMaxRatios[] = {1.08, 1.15, 1.65, 2.6};  // with 8, 16, 32 and 64 threads
  const bool shown = std::getenv("COTERIE_DIVISION") != nullptr;
  for (const Isa& isa : compiled_isas()) {
    if (!isa.supported()) continue;
    for (const Shape& shape : kShapes)
      for (const DType dtype : {DType::bf16, DType::q4}) {
        const std::vector<Region> layer = layer_of(isa, shape, 1, dtype);
        const std::string what = std::string(shape.name) + (dtype == DType::q4 ? ", q4, " : ", bf16, ") + isa.name;
        for (size_t i = 0; i < std::size(kThreads); ++i) {
          const double over = layer_over_mean(layer, kThreads[i]);
          check(over <= kMaxRatios[i], what + " is evenly divided among " + std::to_string(kThreads[i]));
          if (!shown) continue;
          std::printf("%-20s %2d threads: layer %.2f;", what.c_str(), static_cast<int>(kThreads[i]), over);
          for (const Region& region : layer)
            std::printf(" %s %d %.2f", region.name, static_cast<int>(region.units), longest_over_mean(region.units, kThreads[i]));
          std::printf("\n");
        }
      }
  }
}

// How many units of a token's attention have work, and how many kv heads each handles.
struct Attending {
  int64_t units, heads;
};

Attending attending(const Isa& isa, const Shape& s, int64_t context, int64_t threads) {
  const int64_t Z = 16;
  Pages pages(1, context, Z, s.K, s.C, 1);
  const std::vector<float> q = random_floats(s.H * s.C);
  const std::vector<i32> positions{static_cast<i32>(context - 1)}, sequence{0};
  std::vector<float> y(s.H * s.C);
  Attention op{};
  pages.operands(op, positions, sequence, 0);
  op.q = q.data(), op.y = y.data(), op.T = 1, op.B = 1, op.H = s.H, op.scale = 0.1;
  const Row row = row_of(Opcode::attention, op);
  const Kernel& kernel = isa.kernel(row.opcode);
  Scratch scratch;
  Shared shared;
  scratch.grow(static_cast<size_t>(kernel.scratch_bytes(row)));
  shared.grow(static_cast<size_t>(kernel.shared_bytes(row)));
  scratch.share(shared.base(), threads);
  int64_t live = 0;
  for (int64_t unit = 0; unit < kernel.units(row); ++unit) {
    scratch.rewind();
    kernel.run(row, unit, scratch);
    live += scratch.used() > 0;
  }
  return {live, (s.K * ((context + 255) / 256) + live - 1) / live};
}

// Contexts of whole spans of 256: with few threads heads are read together, with many threads each by itself.
void test_contexts() {
  const bool shown = std::getenv("COTERIE_DIVISION") != nullptr;
  for (const Isa& isa : compiled_isas()) {
    if (!isa.supported()) continue;
    for (const Shape& shape : {kShapes[0], kShapes[2]})
      for (const int64_t spans : {1, 4, 8, 17})
        for (const int64_t threads : {1, 2, 8, 16, 32}) {
          const Attending found = attending(isa, shape, 256 * spans, threads);
          const int64_t all = shape.K * spans, longest = (found.units + threads - 1) / threads * found.heads;
          const std::string what = std::string(shape.name) + ", " + std::to_string(spans) + " spans, " + std::to_string(threads) + " threads";
          if (threads <= 2) check(spans == 1 || found.heads == shape.K, what + ": heads are read together");
          check(longest <= std::max((all + threads - 1) / threads * 5 / 4, int64_t{1}), what + ": no thread attends much more than it must");
          const double over = static_cast<double>(longest * threads) / static_cast<double>(all);
          if (shown) std::printf("%s: %d units of %d heads, %.2f\n", what.c_str(), static_cast<int>(found.units), static_cast<int>(found.heads), over);
        }
  }
}

}  // namespace

void test_division() {
  test_layers();
  test_contexts();
}

}  // namespace testing
