// The kernels of one instruction set, in the order of the opcodes. Compiled once per instruction set.
#include "kernel.h"

namespace coterie {

#define COTERIE_DECLARE(op, Struct, FIELDS) extern const Kernel op##_kernel;
COTERIE_COMMON_OPS(COTERIE_DECLARE)

namespace COTERIE_ISA {

COTERIE_VECTOR_OPS(COTERIE_DECLARE)

const Kernel& kernel(int64_t opcode) {
#define COTERIE_ENTRY(op, Struct, FIELDS) &op##_kernel,
  static const Kernel* const table[] = {COTERIE_OPS(COTERIE_ENTRY)};
  return *table[opcode];
}

}  // namespace COTERIE_ISA
}  // namespace coterie
