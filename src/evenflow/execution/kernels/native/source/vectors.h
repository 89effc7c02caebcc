// One vector of floats, as wide as the registers of the instruction set this file is compiled for.
//
// A product is fused with a sum where `fma` says so and nowhere else (the compiler is told
// -ffp-contract=off), so that a row has the same bits in every kernel that computes it.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX2__)
#if defined(__clang__)
#include <immintrin.h>
#else
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // g++ 12 takes offence at its own header
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif
#endif

namespace evenflow {
namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef int32_t IntVec __attribute__((vector_size(4 * LANES)));
typedef uint32_t BitsVec __attribute__((vector_size(4 * LANES)));
typedef uint16_t HalfVec __attribute__((vector_size(2 * LANES)));
typedef int8_t ByteVec __attribute__((vector_size(LANES)));

// Subtracting 0 changes no float, not even -0, so that nothing but the broadcast is left of it.
inline Vec splat(float value) {
    return value - Vec{};
}

inline Vec load(const float* from) {
    Vec value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

inline void store(float* to, Vec value) {
    std::memcpy(to, &value, sizeof value);
}

#if defined(__AVX2__) && !defined(__AVX512F__)
// Return -1 in the first lanes.
inline __m256i first_lanes(int64_t count) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lane);
}
#endif

// Load fewer floats than a vector has; the other lanes are 0.
inline Vec load(const float* from, int64_t count) {
#if defined(__AVX512F__)
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), from);
#elif defined(__AVX2__)
    return _mm256_maskload_ps(from, first_lanes(count));
#else
    Vec value = {};
    for (int64_t i = 0; i < count; ++i) value[i] = from[i];
    return value;
#endif
}

// Store the first floats of a vector, fewer than it has.
inline void store(float* to, Vec value, int64_t count) {
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), value);
#elif defined(__AVX2__)
    _mm256_maskstore_ps(to, first_lanes(count), value);
#else
    for (int64_t i = 0; i < count; ++i) to[i] = value[i];
#endif
}

// Return the upper halves of the bits of floats, rounded to nearest, ties to even; NaN stays NaN.
inline HalfVec to_bf16(Vec value) {
    const BitsVec bits = reinterpret_cast<BitsVec>(value), upper = bits >> 16;
    const BitsVec rounded = (bits + 0x7fff + (upper & 1)) >> 16;
    return __builtin_convertvector(value == value ? rounded : upper | 0x40, HalfVec);
}

// Store narrow entries: all, or the first ones.
template <class Entry, class Entries>
inline void store(Entry* to, Entries entries) {
    static_assert(sizeof entries == LANES * sizeof *to);
    std::memcpy(to, &entries, sizeof entries);
}

template <class Entry, class Entries>
inline void store(Entry* to, Entries entries, int64_t count) {
    for (int64_t i = 0; i < count; ++i) to[i] = entries[i];
}

// Return a * b + c, rounded once where the processor can do it fast.
inline Vec fma(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
    return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
    return _mm256_fmadd_ps(a, b, c);
#elif defined(__FP_FAST_FMAF)
    for (int i = 0; i < LANES; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return c;
#else
    return a * b + c;
#endif
}

inline Vec max(Vec a, Vec b) {
    return a > b ? a : b;
}

// Sum the lanes in one tree: halves first.
inline float sum(Vec value) {
    float lanes[LANES];
    store(lanes, value);
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
    return lanes[0];
}

// Return the largest lane, of floats or integers.
template <class Numbers>
inline auto largest(Numbers value) {
    std::decay_t<decltype(value[0])> lanes[LANES];
    std::memcpy(lanes, &value, sizeof lanes);
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; ++i)
            lanes[i] = lanes[i + width] > lanes[i] ? lanes[i + width] : lanes[i];
    return lanes[0];
}

// Return e^x within 2 ulp for x in [-87.3, 88.3], 0 below, e^88.3 above, NaN for NaN.
//
// x = n ln 2 + r with |r| <= ln 2 / 2, and e^r by its Taylor series to the seventh power (error
// below 2^-27). Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits.
inline Vec exp(Vec x) {
    const Vec low = splat(-87.3f), high = splat(88.3f), rounder = splat(12582912.0f);
    const Vec clamped = x > high ? high : x;
    const Vec shifted = fma(clamped, splat(1.44269504f), rounder);
    const Vec n = shifted - rounder;
    // ln 2 in two parts; the first has so few bits that its product with n is exact.
    Vec r = fma(n, splat(-0.693359375f), clamped);
    r = fma(n, splat(2.12194440e-4f), r);
    Vec series = splat(1.0f / 5040);
    series = fma(series, r, splat(1.0f / 720));
    series = fma(series, r, splat(1.0f / 120));
    series = fma(series, r, splat(1.0f / 24));
    series = fma(series, r, splat(1.0f / 6));
    series = fma(series, r, splat(1.0f / 2));
    series = fma(series, r, splat(1.0f));
    series = fma(series, r, splat(1.0f));
    const IntVec power = (reinterpret_cast<IntVec>(shifted) + 127) << 23;  // 2^n, as a float
    return x < low ? Vec{} : series * reinterpret_cast<Vec>(power);
}

}  // namespace
}  // namespace evenflow
