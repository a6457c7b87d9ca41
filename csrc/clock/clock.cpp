#include "clock.h"

#include <algorithm>
#include <stdexcept>

namespace coterie::modelled {

namespace {

constexpr double kRounding = 1e-12;  // relative tolerance: whatever would end this close to the end of a step ends with it

std::vector<double> by_resource(const std::vector<std::pair<int, double>>& capacity) {
  std::vector<double> found;
  for (const auto& [resource, per_s] : capacity) {
    if (static_cast<int>(found.size()) <= resource) found.resize(resource + 1, kUnknown);
    found[resource] = per_s;
  }
  return found;
}

// Advances a work's phase by less than it needs; `columns`: the index of each of its flows in `free` and `drawn`.
void drain(Work& work, const std::vector<int>& columns, double seconds, const std::vector<double>& free,
           std::vector<double>& drawn) {
  const double waited = std::min(work.delay_s, seconds);
  work.delay_s -= waited;
  work.fresh = false;
  seconds -= waited;
  const Phase& leaf = work.leaf();
  for (size_t k = 0; k < columns.size(); ++k) {
    const double amount = std::min(work.left[k], free[columns[k]] * seconds);
    const double rest = work.left[k] - amount;
    work.left[k] = rest > kRounding * leaf.flows[k].amount ? rest : 0.0;
    drawn[columns[k]] += amount;
  }
}

}  // namespace

Clock::Clock(const std::vector<std::pair<int, double>>& capacity) : shares_(by_resource(capacity)) {
  for (const auto& [resource, per_s] : capacity) {
    resources_.push_back(resource);
    if (static_cast<int>(usage_.size()) <= resource) usage_.resize(resource + 1);
  }
}

std::shared_ptr<Work> Clock::issue(const std::string& lane, std::vector<std::shared_ptr<Work>> after,
                                   std::vector<PhasePtr> phases, std::any failure, std::vector<int> cuts) {
  auto work = std::make_shared<Work>();
  work->number = issued_++;
  work->after = std::move(after);
  work->phases = std::move(phases);
  work->failure = std::move(failure);
  work->cuts = std::move(cuts);
  auto found = std::find_if(lanes_.begin(), lanes_.end(), [&](const Lane& known) { return known.name == lane; });
  if (found == lanes_.end()) found = lanes_.insert(lanes_.end(), Lane{lane, {}, 0, false});
  found->works.push_back(work);
  // Everything else is settled, and a work that is queued behind others changes nothing.
  if (found->works.size() == 1) settle();
  return work;
}

std::shared_ptr<Work> Clock::head(const std::string& lane) const {
  for (const Lane& known : lanes_)
    if (known.name == lane && !known.works.empty()) return known.works.front();
  return nullptr;
}

bool Clock::wait(const std::vector<std::shared_ptr<Work>>& works, double until) {
  while (now < until) {
    for (const auto& work : works)
      if (work->finished()) return true;
    if (!advance(until)) {
      if (std::isinf(until)) return false;
      idle_until(until);
    }
  }
  return true;
}

bool Clock::advance(double until) {
  std::vector<Work*> active;
  for (const Lane& lane : lanes_)
    if (!lane.works.empty() && lane.works.front()->entered) active.push_back(lane.works.front().get());
  if (active.size() == 1 && active[0]->fresh && active[0]->part == 0 && advance_alone(*active[0], until)) return true;
  for (Work* work : active) {
    const Parts* parts = work->phases[work->index]->parts.get();
    if (!parts) continue;
    std::vector<Work*> others;
    for (Work* other : active)
      if (other != work) others.push_back(other);
    if (advance_beside(*work, *parts, others, until)) return true;
    break;
  }
  look_at(active);
  if (active_.delayed.empty() && active_.draining.empty()) return false;
  const Shared& shared = shares_.of(active_.uses);
  std::vector<double> ends;
  double step = std::numeric_limits<double>::infinity();
  for (const Work* work : active_.delayed) step = std::min(step, work->delay_s);
  for (size_t i = 0; i < active_.draining.size(); ++i) {
    const Draining& item = active_.draining[i];
    ends.push_back(item.work->left[item.flow] / shared.rates[i]);
    step = std::min(step, ends.back());
  }
  double end = now + step;
  if (end > until) {
    end = std::max(until, now);
    step = end - now;
  }
  const double ended_s = step * (1 + kRounding);
  for (Work* work : active) work->fresh = false;
  for (Work* work : active_.delayed) work->delay_s = work->delay_s <= ended_s ? 0.0 : work->delay_s - step;
  for (size_t i = 0; i < active_.draining.size(); ++i) {
    double& left = active_.draining[i].work->left[active_.draining[i].flow];
    left = ends[i] <= ended_s ? 0.0 : left - shared.rates[i] * step;
  }
  account(shared, step);
  now = end;
  settle();
  return true;
}

void Clock::look_at(const std::vector<Work*>& works) {
  active_.delayed.clear();
  active_.draining.clear();
  active_.uses.clear();
  for (Work* work : works) {
    if (work->delay_s > 0) {
      active_.delayed.push_back(work);
      continue;
    }
    const Phase& leaf = work->leaf();
    for (size_t k = 0; k < leaf.flows.size(); ++k)
      if (work->left[k] > 0) {
        active_.draining.push_back({work, k});
        active_.uses.push_back(leaf.flows[k].uses);
      }
  }
}

bool Clock::advance_alone(Work& work, double until) {
  size_t index = work.index;
  while (true) {
    const Phase& phase = *work.phases[index];
    if (!known(phase.alone_s)) break;
    const double end = now + phase.delay_s + phase.alone_s;
    if (end > until) break;
    draw(phase);
    now = end;
    ++index;
    if (index == work.phases.size() || work.phases[index]->gate) break;
  }
  if (index == work.index) return false;
  work.index = index;
  work.entered = false;
  if (index < work.phases.size() && !work.phases[index]->gate) enter(work);
  settle();
  return true;
}

bool Clock::advance_beside(Work& work, const Parts& parts, const std::vector<Work*>& others, double until) {
  look_at(others);
  Shared& shared = shares_.of(active_.uses);
  const std::vector<double>* free = shares_.left(parts.table().resources, shared);
  if (!free) return false;
  double limit = std::isinf(until) ? until : std::max(0.0, until - now);
  for (const Work* other : active_.delayed) limit = std::min(limit, other->delay_s);
  for (size_t i = 0; i < active_.draining.size(); ++i) {
    const Draining& item = active_.draining[i];
    limit = std::min(limit, item.work->left[item.flow] / shared.rates[i]);
  }
  const double step = take_parts(work, parts, *free, limit, shared);
  const double ended_s = step * (1 + kRounding);
  for (Work* other : active_.delayed) other->delay_s = other->delay_s <= ended_s ? 0.0 : other->delay_s - step;
  for (size_t i = 0; i < active_.draining.size(); ++i) {
    double& left = active_.draining[i].work->left[active_.draining[i].flow];
    left = left <= shared.rates[i] * ended_s ? 0.0 : left - shared.rates[i] * step;
  }
  for (Work* other : others) other->fresh = false;
  account(shared, step);
  now = std::isinf(until) ? now + step : std::min(now + step, std::max(until, now));
  settle();
  return true;
}

double Clock::take_parts(Work& work, const Parts& parts, const std::vector<double>& free, double limit, const Shared& beside) {
  // Keeps the phase alive, which the work may leave and release.
  const PhasePtr held = work.phases[work.index];
  const Table& table = parts.table();
  const std::vector<int>& places = *parts.places;
  size_t at = work.part;
  const std::vector<int>& columns = table.columns[places[at]];
  std::vector<double> drawn(free.size(), 0.0);
  double rest_s = 0;
  for (size_t k = 0; k < columns.size(); ++k) rest_s = std::max(rest_s, work.left[k] / free[columns[k]]);
  double step = work.delay_s + rest_s;
  if (step <= limit) {
    for (size_t k = 0; k < columns.size(); ++k) drawn[columns[k]] += work.left[k];
    const size_t last = places.size() - 1;
    double left_s = limit - step;
    if (at < last) {
      const std::vector<double>& ends = parts.ends_s(free);
      const double begun = ends[at];
      const auto behind = std::upper_bound(ends.begin() + static_cast<int64_t>(at) + 1, ends.end(), begun + left_s);
      const size_t passed = static_cast<size_t>(behind - ends.begin()) - 1;
      if (passed > at) {
        for (size_t column = 0; column < table.sums.size(); ++column)
          drawn[column] += table.sums[column][passed + 1] - table.sums[column][at + 1];
        step += ends[passed] - begun;
        left_s -= ends[passed] - begun;
        at = passed;
      }
    }
    work.part = at;
    work.leave();
    if (work.index < work.phases.size() && (work.part > 0 || !work.phases[work.index]->gate)) enter(work);
    if (at < last) {
      step = limit;
      drain(work, table.columns[places[at + 1]], left_s, free, drawn);
    }
  } else {
    step = limit;
    drain(work, columns, limit, free, drawn);
  }
  for (size_t column = 0; column < drawn.size(); ++column) {
    const int resource = table.resources[column];
    usage_[resource].drawn += drawn[column];
    if (!beside.draws_on(resource)) usage_[resource].busy_s += drawn[column] / shares_.capacity(resource);
  }
  return step;
}

void Clock::draw(const Phase& phase) {
  if (phase.parts) {
    give(phase.drawn);
    return;
  }
  Drawn drawn;
  for (const Flow& flow : phase.flows)
    for (const auto& [resource, share] : uses_at(flow.uses)) drawn.emplace_back(resource, share * flow.amount);
  give(drawn);
}

void Clock::give(const Drawn& drawn) {
  for (const auto& [resource, amount] : drawn) {
    const double per_s = shares_.capacity(resource);
    usage_[resource].drawn += amount;
    usage_[resource].busy_s += amount / per_s;
  }
}

void Clock::account(const Shared& shared, double step) {
  for (const auto& [resource, per_s] : shared.drawn_per_s) {
    usage_[resource].busy_s += step;
    usage_[resource].drawn += per_s * step;
  }
}

void Clock::settle() {
  bool ended = true;
  while (ended) {
    // Only an end can unblock other lanes.
    ended = false;
    for (Lane& lane : lanes_)
      while (!lane.works.empty()) {
        const std::shared_ptr<Work> work = lane.works.front();
        if (!step(*work)) break;
        if (!work->finished()) continue;
        lane.works.pop_front();
        lane.busy_s += work->end_s - work->start_s;
        lane.has_ended = ended = true;
      }
  }
}

bool Clock::step(Work& work) {
  if (work.entered) {
    if (work.delay_s > 0) return false;
    for (const double left : work.left)
      if (left > 0) return false;
    work.leave();
    return true;
  }
  if (!known(work.start_s)) return start(work);
  if (work.index == work.phases.size()) {
    finish(work, work.failure);
    return true;
  }
  return enter(work);
}

bool Clock::start(Work& work) {
  std::any failure;
  for (const auto& cause : work.after) {
    if (!cause->finished()) return false;
    if (!failure.has_value()) failure = cause->failure;
  }
  work.start_s = now;
  work.after.clear();
  if (failure.has_value()) finish(work, std::move(failure));
  return true;
}

bool Clock::enter(Work& work) {
  const std::shared_ptr<Work>& gate = work.phases[work.index]->gate;
  if (gate && work.part == 0) {
    if (!gate->finished()) return false;
    if (gate->failure.has_value()) {
      finish(work, gate->failure);
      return true;
    }
  }
  const Phase& leaf = work.leaf();
  work.entered = work.fresh = true;
  work.delay_s = leaf.delay_s;
  work.left.clear();
  for (const Flow& flow : leaf.flows) work.left.push_back(flow.amount);
  return true;
}

void Clock::finish(Work& work, std::any failure) {
  work.failure = std::move(failure);
  work.end_s = now;
  work.phases.clear();
  work.left.clear();
  work.entered = false;
}

}  // namespace coterie::modelled
