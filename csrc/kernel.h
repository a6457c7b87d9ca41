// The interface of a kernel, and an instruction set with its table of kernels.
// Knows nothing about threads: work is divided into units by shape alone, and any thread may run any unit.
#pragma once

#include "instruction.h"
#include "limits.h"
#include "scratch.h"

namespace coterie {

struct Kernel {
  int64_t (*units)(const Row&);
  int64_t (*scratch_bytes)(const Row&);
  int64_t (*shared_bytes)(const Row&);
  int64_t (*flops)(const Row&);  // a rough count; only decides whether waking other threads is worthwhile
  void (*run)(const Row&, int64_t unit, Scratch&);
};

struct Isa {
  const char* name;
  bool (*supported)();
  const Kernel& (*kernel)(int64_t opcode);
  const Limits& limits;
};

// The default: threads share no memory besides the operands. A kernel that needs some defines an overload.
template <class Op>
int64_t shared_bytes(const Op&) {
  return 0;
}

}  // namespace coterie

// Each kernel file defines units, scratch_bytes, flops and run for its struct of operands; this wraps them for Row.
#define COTERIE_KERNEL(op, Struct)                                                                \
  extern const Kernel op##_kernel;                                                                \
  const Kernel op##_kernel = {                                                                    \
      [](const Row& row) { return units(operands_of<Struct>(row)); },                             \
      [](const Row& row) { return scratch_bytes(operands_of<Struct>(row)); },                     \
      [](const Row& row) { return shared_bytes(operands_of<Struct>(row)); },                      \
      [](const Row& row) { return flops(operands_of<Struct>(row)); },                             \
      [](const Row& row, int64_t unit, Scratch& s) { run(operands_of<Struct>(row), unit, s); }};
