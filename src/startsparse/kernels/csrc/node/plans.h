// What follows from the shapes of a call, found by Python once and kept by what it follows from.
#pragma once

#include <c10/core/SafePyObject.h>
#include <c10/util/SmallVector.h>

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

namespace startsparse {

// `eager.Passes` it is of, and all integers that decide what is computed: arguments, shapes, threads.
using Key = c10::SmallVector<int64_t, 24>;

struct Plan {
    const void *ahead, *back;     // the layer in each pass: `struct Geometry` of abi.h
    std::vector<int64_t> x_shape; // that it is for
    std::vector<int64_t> shape;   // of the output
    int64_t outputs, weights;     // of the layer; its live ones
    int32_t threads;
    bool blocked;
    c10::SafePyObject held; // keeps the layers alive; `eager.gradients` takes it
};

struct HashOfKey {
    size_t operator()(const Key &key) const {
        uint64_t hash = key.size();
        for (int64_t item : key)
            hash = (hash ^ static_cast<uint64_t>(item)) * 0x9E3779B97F4A7C15u, hash ^= hash >> 29;
        return hash;
    }
};

// Every use holds Python's lock. The oldest are not known: where there are too many, all are found anew.
class Plans {
  public:
    std::shared_ptr<const Plan> find(const Key &key) const {
        const auto found = plans_.find(key);
        return found == plans_.end() ? nullptr : found->second;
    }
    void keep(const Key &key, std::shared_ptr<const Plan> plan) {
        if (plans_.size() >= MOST)
            plans_.clear();
        plans_[key] = std::move(plan);
    }
    void clear() { plans_.clear(); }

  private:
    static constexpr size_t MOST = 4096;
    std::unordered_map<Key, std::shared_ptr<const Plan>, HashOfKey> plans_;
};

} // namespace startsparse
