// How one head's key or value lies in the KV store, and the way in and out.
//
//     fp32, bf16   head_dim entries; bf16 is rounded to nearest, ties to even
//     int8         head_dim codes, then their scale as a float: the largest entry becomes 127
//
// Where an entry is infinite or NaN, so is the whole row, as its scale is NaN.
#pragma once

#include "vectors.h"

namespace evenflow {
namespace {

struct Bf16 {
    uint16_t bits;
};

struct Int8 {
    int8_t code;
};

// Call `call` with an entry of the type that a job names (`KV_TYPES` of ../../attention_job.py).
template <class Call>
inline void with_entry(int64_t kv_type, Call call) {
    switch (kv_type) {
        case 0: return call(float{});
        case 1: return call(Bf16{});
        case 2: return call(Int8{});
    }
}

// Load a register of stored entries as floats; with `count`, fewer than it has.
inline Vec load_entries(const char* from, float) {
    return load(reinterpret_cast<const float*>(from));
}

inline Vec load_entries(const char* from, float, int64_t count) {
    return load(reinterpret_cast<const float*>(from), count);
}

inline Vec load_entries(const char* from, Bf16) {
#if defined(__AVX512F__)
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
#elif defined(__AVX2__)
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
#else
    uint16_t entries[LANES];
    std::memcpy(entries, from, sizeof entries);
    IntVec bits;
    for (int i = 0; i < LANES; ++i) bits[i] = static_cast<int32_t>(entries[i]) << 16;
    return reinterpret_cast<Vec>(bits);
#endif
}

template <class Entry>
inline Vec load_entries(const char* from, Entry, int64_t count) {
    Entry entries[LANES] = {};
    std::memcpy(entries, from, sizeof(Entry) * static_cast<size_t>(count));
    return load_entries(reinterpret_cast<const char*>(entries), Entry{});
}

inline float scale_of(const char* row, int64_t head_dim) {
    float scale;
    std::memcpy(&scale, row + head_dim, sizeof scale);
    return scale;
}

// Return the larger lanes of the bits of numbers' sizes and of `sizes`. As integers these bits are
// ordered as the numbers are, with NaN above all.
inline IntVec larger_size(Vec numbers, IntVec sizes) {
    const IntVec bits = reinterpret_cast<IntVec>(numbers) & 0x7fffffff;
    return bits > sizes ? bits : sizes;
}

// The step between two codes, if the largest of some numbers has code `most`. It is NaN if one of
// them is infinite or NaN, and these have code 0. Numbers below 2^-100 count as zero if all are.
struct Step {
    float size, factor;

    Step(IntVec sizes, int most) : size(0), factor(0) {
        const int32_t peak_bits = largest(sizes);
        float peak;
        std::memcpy(&peak, &peak_bits, sizeof peak);
        if (peak_bits >= 0x7f800000) {
            size = __builtin_nanf("");
        } else if (peak >= 0x1p-100f) {
            size = peak / static_cast<float>(most);
            factor = static_cast<float>(most) / peak;
        }
    }

    // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits.
    IntVec codes(Vec numbers) const {
        const Vec rounder = splat(12582912.0f);
        const Vec rounded = numbers * splat(factor) + rounder;
        const IntVec codes = reinterpret_cast<IntVec>(rounded) - reinterpret_cast<IntVec>(rounder);
        return rounded == rounded ? codes : IntVec{};
    }
};

// Write a row. `each(visit)` calls `visit(i, entries)` for each register of its entries, or, where
// it has fewer left, `visit(i, entries, rest)`; the other lanes are 0.
template <class Each>
inline void store_row(char* row, int64_t, Each each, float) {
    each([row](int64_t i, Vec entries, auto... rest) {
        store(reinterpret_cast<float*>(row) + i, entries, rest...);
    });
}

template <class Each>
inline void store_row(char* row, int64_t, Each each, Bf16) {
    each([row](int64_t i, Vec entries, auto... rest) {
        store(reinterpret_cast<uint16_t*>(row) + i, to_bf16(entries), rest...);
    });
}

template <class Each>
inline void store_row(char* row, int64_t head_dim, Each each, Int8) {
    IntVec sizes = {};
    each([&sizes](int64_t, Vec entries, auto...) { sizes = larger_size(entries, sizes); });
    const Step step(sizes, 127);
    each([=](int64_t i, Vec entries, auto... rest) {
        const ByteVec codes = __builtin_convertvector(step.codes(entries), ByteVec);
        store(reinterpret_cast<int8_t*>(row) + i, codes, rest...);
    });
    std::memcpy(row + head_dim, &step.size, sizeof step.size);
}

}  // namespace
}  // namespace evenflow
