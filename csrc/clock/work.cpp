#include "work.h"

#include <algorithm>
#include <deque>
#include <stdexcept>
#include <unordered_map>

namespace coterie::modelled {

namespace {

struct Known {
  std::unordered_map<std::string, int> resources;
  std::deque<std::string> names;
  std::map<Uses, int> numbers;
  std::deque<Uses> uses;
};

Known& all_known() {
  static Known known;
  return known;
}

}  // namespace

int resource_of(const std::string& name) {
  Known& all = all_known();
  const auto [at, fresh] = all.resources.emplace(name, static_cast<int>(all.names.size()));
  if (fresh) all.names.push_back(name);
  return at->second;
}

const std::string& name_of(int resource) { return all_known().names[resource]; }

int uses_of(const Uses& uses) {
  Known& all = all_known();
  const auto [at, fresh] = all.numbers.emplace(uses, static_cast<int>(all.uses.size()));
  if (fresh) all.uses.push_back(uses);
  return at->second;
}

const Uses& uses_at(int number) { return all_known().uses[number]; }

Parts::Parts(std::vector<PhasePtr> kinds, Places order) : unique(std::move(kinds)), places(std::move(order)) {
  for (const int place : *places)
    if (place < 0 || place >= static_cast<int>(unique.size())) throw std::invalid_argument("a part is none of the phases");
}

const Table& Parts::table() const {
  if (table_) return *table_;
  auto made = std::make_unique<Table>();
  for (const PhasePtr& kind : unique) {
    std::vector<int>& columns = made->columns.emplace_back();
    for (const Flow& flow : kind->flows)
      for (const auto& [resource, share] : uses_at(flow.uses)) {
        const auto at = std::find(made->resources.begin(), made->resources.end(), resource);
        columns.push_back(static_cast<int>(at - made->resources.begin()));
        if (at == made->resources.end()) made->resources.push_back(resource);
      }
  }
  for (size_t kind = 0; kind < unique.size(); ++kind) {
    std::vector<double>& row = made->amounts.emplace_back(made->resources.size(), 0.0);
    size_t column = 0;
    for (const Flow& flow : unique[kind]->flows)
      for (const auto& [resource, share] : uses_at(flow.uses)) row[made->columns[kind][column++]] += share * flow.amount;
  }
  for (size_t column = 0; column < made->resources.size(); ++column) {
    std::vector<double>& sums = made->sums.emplace_back(1, 0.0);
    sums.reserve(size() + 1);
    for (const int place : *places) sums.push_back(sums.back() + made->amounts[place][column]);
  }
  table_ = std::move(made);
  return *table_;
}

const std::vector<double>& Parts::ends_s(const std::vector<double>& free) const {
  const auto found = ends_.find(free);
  if (found != ends_.end()) return found->second;
  if (ends_.size() >= kMaxEnds) ends_.clear();
  std::vector<double> each;
  for (size_t kind = 0; kind < unique.size(); ++kind) {
    double longest = 0;
    for (size_t column = 0; column < free.size(); ++column)
      longest = std::max(longest, table().amounts[kind][column] / free[column]);
    each.push_back(unique[kind]->delay_s + longest);
  }
  std::vector<double>& ends = ends_[free];
  ends.reserve(size());
  double total = 0;
  for (const int place : *places) ends.push_back(total += each[place]);
  return ends;
}

PhasePtr merged(const Parts& parts, size_t begin, size_t end, const PhasePtr& head) {
  std::vector<PhasePtr> unique = parts.unique;
  Parts::Places places = parts.places;
  if (begin >= end || end > parts.size()) throw std::invalid_argument("no parts to merge");
  if (begin > 0 || end < parts.size() || head) {
    auto chosen = std::make_shared<std::vector<int>>(places->begin() + static_cast<int64_t>(begin),
                                                     places->begin() + static_cast<int64_t>(end));
    if (head) {
      chosen->front() = static_cast<int>(unique.size());
      unique.push_back(head);
    }
    places = std::move(chosen);
  }
  auto whole = std::make_shared<Phase>();
  std::vector<double> took_s;
  std::vector<std::vector<double>> drawn;  // [column of `whole->drawn`][kind]
  for (size_t kind = 0; kind < unique.size(); ++kind) {
    const Phase& part = *unique[kind];
    if (part.gate || part.parts || !known(part.alone_s))
      throw std::invalid_argument("only plain phases without gates, which know how long they take alone, can be merged");
    took_s.push_back(part.delay_s + part.alone_s);
    for (const Flow& flow : part.flows)
      for (const auto& [resource, share] : uses_at(flow.uses)) {
        size_t column = 0;
        while (column < drawn.size() && whole->drawn[column].first != resource) ++column;
        if (column == drawn.size()) {
          whole->drawn.emplace_back(resource, 0.0);
          drawn.emplace_back(unique.size(), 0.0);
        }
        drawn[column][kind] += share * flow.amount;
      }
  }
  // Added part by part, in their order: sums are bit-identical to those of the reference.
  double alone_s = 0;
  for (const int place : *places) alone_s += took_s[place];
  for (size_t column = 0; column < drawn.size(); ++column)
    for (const int place : *places) whole->drawn[column].second += drawn[column][place];
  whole->alone_s = alone_s;
  whole->parts = std::make_shared<const Parts>(std::move(unique), std::move(places));
  return whole;
}

void Work::cut_short() {
  if (cuts.empty() || finished()) return;
  pieces = 1;
  while (static_cast<size_t>(pieces) < cuts.size() && index >= static_cast<size_t>(cuts[pieces - 1])) ++pieces;
  phases.resize(std::min(phases.size(), static_cast<size_t>(cuts[pieces - 1])));
}

const Phase& Work::leaf() const {
  const Phase& phase = *phases[index];
  return phase.parts ? phase.parts->at(part) : phase;
}

void Work::leave() {
  const auto& parts = phases[index]->parts;
  if (parts && part + 1 < parts->size()) {
    ++part;
  } else {
    ++index;
    part = 0;
  }
  entered = false;
}

}  // namespace coterie::modelled
