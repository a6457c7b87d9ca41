// How flows share resources: max-min fair rates, and what is left of each resource for one flow more.
// The Python of it is devices/modelled/share.py. Knows nothing about work, lanes, the time, or Python.
#pragma once

#include <map>
#include <optional>

#include "work.h"

namespace coterie::modelled {

// How flows, given by what each uses, share: their rates, and how fast all together draw on each resource.
struct Shared {
  std::vector<int> uses;
  std::vector<double> rates;
  Drawn drawn_per_s;
  std::map<std::vector<int>, std::optional<std::vector<double>>> left;  // by resources

  bool draws_on(int resource) const;
};

// Fair rates under capacities per second, kept for the sets of flows seen last.
class Shares {
 public:
  // `capacity` by resource; NaN where there is none of that name.
  explicit Shares(std::vector<double> capacity) : capacity_(std::move(capacity)) {}

  // How these flows share. Throws std::out_of_range for a resource without a capacity. Good until the next call.
  Shared& of(const std::vector<int>& uses);
  // What they leave of each of these resources to one flow more; null if that one's fair share would slow them.
  const std::vector<double>* left(const std::vector<int>& resources, Shared& shared) const;
  double capacity(int resource) const;

 private:
  std::vector<double> fair_rates(const std::vector<int>& uses) const;

  std::vector<double> capacity_;
  std::map<std::vector<int>, Shared> known_;
};

}  // namespace coterie::modelled
