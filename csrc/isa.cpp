// Detects what the processor supports. The rows match the instruction sets that CMakeLists.txt compiles kernels for.
#include "isa.h"

#include <iterator>

namespace coterie {

namespace plain {
const Kernel& kernel(int64_t opcode);
extern const Limits limits;
}
#if defined(__x86_64__)
namespace avx2 {
const Kernel& kernel(int64_t opcode);
extern const Limits limits;
}
namespace avx512 {
const Kernel& kernel(int64_t opcode);
extern const Limits limits;
}
#endif

#if defined(__aarch64__)
namespace neon {
const Kernel& kernel(int64_t opcode);
extern const Limits limits;
}
#endif

namespace {

const Isa kIsas[] = {
    {"plain", [] { return true; }, plain::kernel, plain::limits},
#if defined(__x86_64__)
    {"avx2",
     [] {
       return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
     },
     avx2::kernel,
     avx2::limits},
    {"avx512",
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
     },
     avx512::kernel,
     avx512::limits},
#endif
#if defined(__aarch64__)
    {"neon", [] { return true; }, neon::kernel, neon::limits},  // every aarch64 CPU has it
#endif
};

}  // namespace

std::span<const Isa> compiled_isas() { return kIsas; }

bool has_bf16_products() {
#if defined(__x86_64__)
  static const bool has = std::end(kIsas)[-1].supported() && __builtin_cpu_supports("avx512bf16");
  return has;
#else
  return false;
#endif
}

}  // namespace coterie
