// Work on a modelled lane: flows, phases, merged phases, and where a work is. The Python of it is devices/modelled/work.py.
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

// A resource is a number here; names are kept once for the whole process, as long as it lives.
int resource_of(const std::string& name);
const std::string& name_of(int resource);

// How much of each resource one unit of a flow takes, in the order given. Equal ones are one object, so they are told apart by
// their number; kept as long as the process lives.
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

// What parts draw, part by part. `columns` has the place in `resources` of each flow of each kind of part; `sums` of a resource
// has what the first n parts draw of it, for n from 0.
struct Table {
  std::vector<int> resources;
  std::vector<std::vector<int>> columns;
  std::vector<std::vector<double>> amounts;  // kind, column
  std::vector<std::vector<double>> sums;     // column, part
};

constexpr size_t kMaxEnds = 16;  // of what is left that ends are kept for; a bound on memory, not on use

// Plain phases without gates, one after the other: `places` says which of the `unique` ones each is.
struct Parts {
  using Places = std::shared_ptr<const std::vector<int>>;

  Parts(std::vector<PhasePtr> unique, Places places);

  size_t size() const { return places->size(); }
  const Phase& at(size_t part) const { return *unique[(*places)[part]]; }
  const Table& table() const;
  // When each part would end, one after the other, from 0, with so much of each resource left.
  const std::vector<double>& ends_s(const std::vector<double>& free) const;

  const std::vector<PhasePtr> unique;
  const Places places;

 private:
  mutable std::unique_ptr<Table> table_;
  mutable std::map<std::vector<double>, std::vector<double>> ends_;
};

// The parts from `begin` to `end` as one phase; `head`, where there is one, stands in the place of the first.
// Throws std::invalid_argument unless each part is plain, has no gate and knows how long it takes alone.
PhasePtr merged(const Parts& parts, size_t begin, size_t end, const PhasePtr& head);

struct Work : std::enable_shared_from_this<Work> {
  int64_t number = 0;
  std::vector<std::shared_ptr<Work>> after;
  std::vector<PhasePtr> phases;
  std::vector<int> cuts;
  std::any failure;  // how it ends (empty: well), whatever that is for those above
  int pieces = -1;   // to how many it was cut short
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
