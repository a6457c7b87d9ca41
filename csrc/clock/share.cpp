#include "share.h"

#include <algorithm>
#include <stdexcept>

namespace coterie::modelled {

namespace {

constexpr size_t kMaxShared = 256;  // cache entries: sets of flows; bounds memory, not use

void add(Drawn& totals, int resource, double amount) {
  for (auto& [name, total] : totals)
    if (name == resource) {
      total += amount;
      return;
    }
  totals.emplace_back(resource, 0.0 + amount);
}

}  // namespace

bool Shared::draws_on(int resource) const {
  return std::any_of(drawn_per_s.begin(), drawn_per_s.end(), [&](const auto& item) { return item.first == resource; });
}

double Shares::capacity(int resource) const {
  if (resource >= static_cast<int>(capacity_.size()) || !known(capacity_[resource]))
    throw std::out_of_range("no capacity is known of " + name_of(resource));
  return capacity_[resource];
}

std::vector<double> Shares::fair_rates(const std::vector<int>& uses) const {
  std::vector<double> rates;
  std::vector<size_t> open;
  std::map<int, double> left;
  for (size_t i = 0; i < uses.size(); ++i) {
    const Uses& flow = uses_at(uses[i]);
    rates.push_back(flow.empty() ? std::numeric_limits<double>::infinity() : 0.0);
    if (!flow.empty()) open.push_back(i);
    for (const auto& [resource, share] : flow) left.emplace(resource, capacity(resource));
  }
  double level = 0;
  while (!open.empty()) {
    Drawn demand;
    for (const size_t i : open)
      for (const auto& [resource, share] : uses_at(uses[i])) add(demand, resource, share);
    // All rates rise together until a resource is full; of several, the first by name.
    int tight = demand.front().first;
    double rise = left[tight] / demand.front().second;
    for (const auto& [resource, total] : demand) {
      const double until_full = left[resource] / total;
      if (until_full < rise || (until_full == rise && name_of(resource) < name_of(tight))) {
        rise = until_full;
        tight = resource;
      }
    }
    level += rise;
    for (const auto& [resource, total] : demand) left[resource] = std::max(0.0, left[resource] - rise * total);
    std::vector<size_t> still_open;
    for (const size_t i : open) {
      const Uses& flow = uses_at(uses[i]);
      if (std::any_of(flow.begin(), flow.end(), [&](const auto& item) { return item.first == tight; }))
        rates[i] = level;
      else
        still_open.push_back(i);
    }
    open = std::move(still_open);
  }
  return rates;
}

Shared& Shares::of(const std::vector<int>& uses) {
  const auto found = known_.find(uses);
  if (found != known_.end()) return found->second;
  if (known_.size() >= kMaxShared) known_.clear();
  Shared made{uses, fair_rates(uses), {}, {}};
  for (size_t i = 0; i < uses.size(); ++i)
    for (const auto& [resource, share] : uses_at(uses[i])) add(made.drawn_per_s, resource, share * made.rates[i]);
  return known_.emplace(uses, std::move(made)).first->second;
}

const std::vector<double>* Shares::left(const std::vector<int>& resources, Shared& shared) const {
  const auto found = shared.left.find(resources);
  if (found != shared.left.end()) return found->second ? &*found->second : nullptr;
  std::optional<std::vector<double>> free(std::in_place);
  for (const int resource : resources) {
    double taken = 0, fastest = 0;
    for (size_t i = 0; i < shared.uses.size(); ++i)
      for (const auto& [name, share] : uses_at(shared.uses[i]))
        if (name == resource) {
          taken += share * shared.rates[i];
          fastest = std::max(fastest, shared.rates[i]);
        }
    const double rest = capacity(resource) - taken;
    if (rest < fastest || rest <= 0) {
      free.reset();
      break;
    }
    free->push_back(rest);
  }
  const auto& kept = shared.left.emplace(resources, std::move(free)).first->second;
  return kept ? &*kept : nullptr;
}

}  // namespace coterie::modelled
