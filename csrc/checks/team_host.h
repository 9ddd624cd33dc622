// A team of lanes on the host: one thread plays them one after the other (see gpu/team.h).
#pragma once

#include <array>
#include <type_traits>

#include "gpu/team.h"

namespace svdrd {
namespace teams {

// `backwards` plays the lanes from the last to the first: a result that depends on it comes from a race.
template <int lanes>
class HostTeam {
 public:
  template <typename V>
  using Lanes = std::array<V, lanes>;

  explicit HostTeam(bool backwards) : backwards_(backwards) {}

  static constexpr int size() { return lanes; }

  template <typename F>
  void each(const F& f) const {
    for (int i = 0; i < lanes; ++i) f(backwards_ ? lanes - 1 - i : i);
  }
  template <typename F>
  auto map(const F& f) const {
    Lanes<std::decay_t<decltype(f(0))>> values;
    each([&](int lane) { values[static_cast<size_t>(lane)] = f(lane); });
    return values;
  }
  template <typename V>
  static V& at(Lanes<V>& values, int lane) {
    return values[static_cast<size_t>(lane)];
  }
  template <typename V>
  static const V& at(const Lanes<V>& values, int lane) {
    return values[static_cast<size_t>(lane)];
  }
  template <typename V>
  Lanes<V> group_sum(const Lanes<V>& values, int width) const {
    Lanes<V> sums = values;
    for (int distance = 1; distance < width; distance *= 2) {
      const Lanes<V> before = sums;
      each([&](int lane) { at(sums, lane) = at(before, lane) + at(before, lane ^ distance); });
    }
    return sums;
  }
  bool any(const Lanes<bool>& flags) const {
    for (const bool flag : flags)
      if (flag) return true;
    return false;
  }
  void sync() const {}

 private:
  bool backwards_;
};

}  // namespace teams
}  // namespace svdrd
