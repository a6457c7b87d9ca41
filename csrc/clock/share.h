// How flows share resources: max-min fair rates, and the capacity left over for one more flow.
// The Python reference is devices/modelled/share.py. Knows nothing about work, lanes, the time, or Python.
#pragma once

#include <map>
#include <optional>

#include "work.h"

namespace coterie::modelled {

// How a set of flows, given by what each uses, shares the resources: the flows' rates,
// and how fast they draw on each resource in total.
struct Shared {
  std::vector<int> uses;
  std::vector<double> rates;
  Drawn drawn_per_s;
  std::map<std::vector<int>, std::optional<std::vector<double>>> left;  // by resources

  bool draws_on(int resource) const;
};

// Fair rates for given capacities per second, with a cache of sets of flows.
class Shares {
 public:
  // `capacity`: by resource; NaN where none is known.
  explicit Shares(std::vector<double> capacity) : capacity_(std::move(capacity)) {}

  // How these flows share. Throws std::out_of_range for a resource without a capacity. Valid until the next call.
  Shared& of(const std::vector<int>& uses);
  // The capacity that they leave of each of these resources to one more flow; null if its fair share would slow them.
  const std::vector<double>* left(const std::vector<int>& resources, Shared& shared) const;
  double capacity(int resource) const;

 private:
  std::vector<double> fair_rates(const std::vector<int>& uses) const;

  std::vector<double> capacity_;
  std::map<std::vector<int>, Shared> known_;
};

}  // namespace coterie::modelled
