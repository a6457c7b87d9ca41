// The tools of the native tests: checks that are counted, random tensors at odd addresses,
// and rows that every team runs.
// Knows nothing about any particular op.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#define COTERIE_ISA plain
#include "../../csrc/team.h"
#include "../../csrc/vec.h"

namespace testing {

using namespace coterie;

inline int checks = 0, failures = 0;

inline void check(bool passed, const std::string& what) {
  ++checks;
  if (passed) return;
  ++failures;
  std::printf("FAILED %s\n", what.c_str());
}

inline std::vector<bool> seen(static_cast<size_t>(kOpcodes));  // opcodes that everywhere() was given

inline std::mt19937_64& rng() {
  static std::mt19937_64 engine(7);
  return engine;
}

inline std::vector<float> random_floats(int64_t count, float center = 0.0f, float scale = 1.0f) {
  std::normal_distribution<float> normal(center, scale);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(rng());
  return values;
}

// At an odd address, in a buffer of exactly the size needed: sanitizers see a read beyond it.
struct Tensor {
  std::vector<float> values;  // as stored
  DType dtype = DType::f32;
  std::unique_ptr<uint8_t[]> memory;

  bytes* at() const { return values.empty() ? nullptr : memory.get() + 1; }
  integer type() const { return static_cast<integer>(dtype); }
  float operator[](int64_t i) const { return values[static_cast<size_t>(i)]; }
};

inline Tensor tensor(std::vector<float> values, DType dtype) {
  Tensor made{std::move(values), dtype, nullptr};
  const auto size = static_cast<size_t>(size_of(made.type()));
  made.memory = std::make_unique<uint8_t[]>(made.values.size() * size + 1);
  for (size_t i = 0; i < made.values.size(); ++i) {
    float& value = made.values[i];
    uint8_t* out = made.memory.get() + 1 + i * size;
    const uint16_t half = dtype == DType::f16 ? plain::narrow_f16(value) : plain::narrow_bf16(value);
    std::memcpy(out, dtype == DType::f32 ? static_cast<const void*>(&value) : &half, size);
    if (dtype != DType::f32) value = dtype == DType::f16 ? plain::widen_f16(half) : plain::widen_bf16(half);
  }
  return made;
}

inline Tensor weight(int64_t rows, int64_t columns, DType dtype) {
  return tensor(random_floats(rows * columns, 0.0f, 1.0f / std::sqrt(static_cast<float>(columns))), dtype);
}

inline Tensor norm_weight(int64_t count, DType dtype) { return tensor(random_floats(count, 1.0f, 0.1f), dtype); }

template <class Op>
Row row_of(Opcode opcode, const Op& op, const int32_t* gate = nullptr) {
  Row row{static_cast<int64_t>(opcode), gate, {}};
  std::memcpy(row.operands, &op, sizeof op);
  return row;
}

// Every instruction set of this machine with 1 to 64 threads; no instruction is too small to be shared.
struct Crew {
  const Isa* isa;
  std::unique_ptr<Team> team;
};

inline std::vector<Crew>& crews() {
  static std::vector<Crew> all = [] {
    std::vector<Crew> made;
    for (const Isa& isa : compiled_isas())
      if (isa.supported())
        for (int threads : {1, 2, 3, 5, 8, 64}) made.push_back({&isa, std::make_unique<Team>(threads, isa, 0)});
    return made;
  }();
  return all;
}

// Memory that rows write: overwritten before each run, and compared bit for bit
// between thread counts of one instruction set.
struct Output {
  void* data;
  size_t size_bytes;
};

template <class T>
Output output(std::vector<T>& values) {
  return {values.data(), values.size() * sizeof(T)};
}

inline std::string where(const std::string& what, const Crew& crew) {
  return what + " with " + crew.isa->name + " and " + std::to_string(crew.team->threads()) + " threads";
}

// The most scratch that any of the rows says it needs.
inline int64_t promised_bytes(const Isa& isa, const std::vector<Row>& rows) {
  int64_t max_bytes = 0;
  for (const Row& row : rows) max_bytes = std::max(max_bytes, isa.kernel(row.opcode).scratch_bytes(row));
  return max_bytes;
}

// Fills the scratch of a team of one thread with NaNs, so that tests fail if a row reads scratch that it did not write.
inline void spoil(Team& team) {
  constexpr int64_t kTokens = 132, kColumns = 1200;
  static const std::vector<uint8_t> ones(kTokens * kColumns * 4, 0xFF);
  std::vector<float> y(kTokens);
  const auto* x = reinterpret_cast<const float*>(ones.data());
  const Row row = row_of(Opcode::linear, Linear{x, ones.data(), 0, nullptr, 0, y.data(), kTokens, 1, kColumns, 1.0});
  team.run(&row, 1);
}

// Runs rows with every crew. `right` checks the outputs, once per instruction set.
inline void everywhere(const std::string& what, const std::vector<Row>& rows, const std::vector<Output>& outputs,
                       const std::function<bool()>& right) {
  std::vector<std::vector<uint8_t>> first;
  const Isa* isa = nullptr;
  for (const Row& row : rows) seen[static_cast<size_t>(row.opcode)] = true;
  for (const Crew& crew : crews()) {
    for (const Output& out : outputs)
      if (out.size_bytes > 0) std::memset(out.data, 0x5A, out.size_bytes);  // an empty output may have a null address
    if (crew.team->threads() == 1) spoil(*crew.team);
    crew.team->reset_counters();
    const Walked walked = crew.team->run(rows.data(), static_cast<int64_t>(rows.size()));
    check(walked.steps == 1 && walked.rows == static_cast<int64_t>(rows.size()), where(what + " walks all rows", crew));
    // Crews keep the scratch of larger rows, so nothing else would show an overrun.
    check(crew.team->counters().scratch_bytes <= promised_bytes(*crew.isa, rows), where(what + " takes the scratch that it asks for", crew));
    if (crew.isa != isa) {
      isa = crew.isa;
      first.clear();
      for (const Output& out : outputs) {
        const auto* begin = static_cast<uint8_t*>(out.data);
        first.emplace_back(begin, begin + out.size_bytes);
      }
      check(right(), where(what + " is right", crew));
    }
    for (size_t i = 0; i < outputs.size(); ++i)
      check(first[i].empty() || std::memcmp(first[i].data(), outputs[i].data, first[i].size()) == 0, where(what + " has the same bits", crew));
  }
}

inline bool close(const std::vector<float>& got, const std::vector<double>& wanted, double tolerance) {
  if (got.size() != wanted.size()) return false;
  for (size_t i = 0; i < got.size(); ++i)
    if (!(std::abs(got[i] - wanted[i]) <= tolerance * (1.0 + std::abs(wanted[i])))) {
      std::printf("  [%zu] is %.9g, wanted %.9g\n", i, static_cast<double>(got[i]), wanted[i]);
      return false;
    }
  return true;
}

void test_ops();    // ops.cpp
void test_fused();  // fused.cpp
void test_branches();  // branches.cpp
void test_gated_delta();  // gated_delta.cpp
void test_division();  // division.cpp
void test_bf16_products();  // bf16_products.cpp
void test_latent();  // latent.cpp
void test_parts();  // parts.cpp
void test_scan();  // scan.cpp
void test_packed();  // packed.cpp
void test_reads();  // reads.cpp
void test_limits();  // limits.cpp
void test_teams();  // teams.cpp

}  // namespace testing
