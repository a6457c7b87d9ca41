// Work on a modelled lane: flows, phases, merged phases, and a work's progress.
// The Python reference is devices/modelled/work.py.
// Knows nothing about lanes, capacities, the time, or Python.
#pragma once

#include <any>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace coterie::modelled {

constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();
inline bool known(double value) { return !std::isnan(value); }

// Resources are numbers here; their names are interned for the life of the process.
int resource_of(const std::string& name);
const std::string& name_of(int resource);

// The units of each resource that one unit of a flow takes, in the order given.
// Interned for the life of the process: equal ones have the same number.
using Uses = std::vector<std::pair<int, double>>;
int uses_of(const Uses& uses);
const Uses& uses_at(int number);

struct Flow {
  double amount;
  int uses;
};

struct Work;
struct Parts;
using Drawn = std::vector<std::pair<int, double>>;  // resource, amount

struct Phase {
  double delay_s = 0;
  std::vector<Flow> flows;
  std::shared_ptr<Work> gate;
  double alone_s = kUnknown;
  std::shared_ptr<const Parts> parts;
  Drawn drawn;
};
using PhasePtr = std::shared_ptr<const Phase>;

// What parts draw. `columns`: per kind of part, the index in `resources` of each flow's use; `sums`: per resource, the
// prefix sums of what the parts draw, from 0.
struct Table {
  std::vector<int> resources;
  std::vector<std::vector<int>> columns;
  std::vector<std::vector<double>> amounts;  // kind, column
  std::vector<std::vector<double>> sums;     // column, part
};

constexpr size_t kMaxEnds = 16;  // cache entries of ends_s(): capacities left; bounds memory, not use

// A sequence of plain phases without gates: `places` are indices into `unique`.
struct Parts {
  using Places = std::shared_ptr<const std::vector<int>>;

  Parts(std::vector<PhasePtr> unique, Places places);

  size_t size() const { return places->size(); }
  const Phase& at(size_t part) const { return *unique[(*places)[part]]; }
  const Table& table() const;
  // When each part would end if all ran one after the other from 0, with this much left of each resource.
  const std::vector<double>& ends_s(const std::vector<double>& free) const;

  const std::vector<PhasePtr> unique;
  const Places places;

 private:
  mutable std::unique_ptr<Table> table_;
  mutable std::map<std::vector<double>, std::vector<double>> ends_;
};

// The parts from `begin` to `end` as one phase; `head`, unless null, replaces the first.
// Throws std::invalid_argument unless each part is plain, has no gate and knows how long it takes alone.
PhasePtr merged(const Parts& parts, size_t begin, size_t end, const PhasePtr& head);

struct Work : std::enable_shared_from_this<Work> {
  int64_t number = 0;
  std::vector<std::shared_ptr<Work>> after;
  std::vector<PhasePtr> phases;
  std::vector<int> cuts;
  std::any failure;  // empty: none; otherwise opaque here
  int pieces = -1;   // how many it was cut short to, or -1
  double start_s = kUnknown, end_s = kUnknown;

  bool entered = false, fresh = false;
  size_t index = 0, part = 0;
  double delay_s = 0;
  std::vector<double> left;

  bool finished() const { return known(end_s); }
  void cut_short();
  const Phase& leaf() const;
  void leave();
};

}  // namespace coterie::modelled
