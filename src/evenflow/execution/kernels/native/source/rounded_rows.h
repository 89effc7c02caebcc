// Rows of activations rounded to int8, as the products with packed weights take them.
//
// Each group of 32 inputs has a scale of its own: its largest entry becomes 127. Up to eight rows
// form a panel, which goes through a tile of weights together. A panel's rows lie interleaved,
// group by group, so that one pointer and constant distances reach all of them.
#pragma once

#include "packed.h"
#include "vectors.h"
#include "words.h"

namespace evenflow {
namespace {

#if defined(__AVX512F__)
constexpr int PANEL_ROWS = 8;
#else
constexpr int PANEL_ROWS = 4;  // sixteen registers hold the sums of no more
#endif

// One group of a panel. Sums are those of codes; negative, since zero points are subtracted.
template <int rows>
struct Panel {
    int8_t codes[rows][GROUP];
    float scales[rows];
    float scaled_sums[rows];
    int32_t minus_sums[3][rows];  // of the whole group, of its first half, of its second
};

// A number of rows that the compiler knows.
template <int count>
struct Height {
    static constexpr int rows = count;
};

// Call `call` with the height of a panel.
template <class Call>
inline void with_height(int64_t rows, Call call) {
    switch (rows) {
        case 1: return call(Height<1>{});
        case 2: return call(Height<2>{});
        case 3: return call(Height<3>{});
        case 4: return call(Height<4>{});
#if defined(__AVX512F__)
        case 5: return call(Height<5>{});
        case 6: return call(Height<6>{});
        case 7: return call(Height<7>{});
        case 8: return call(Height<8>{});
#endif
    }
}

// Rows that one thread has rounded, in memory of its own.
struct RowBlock {
    uint8_t* memory;
    int64_t num_groups, first_row, num_rows;

    static int64_t bytes_per_row(int64_t num_groups) {
        return num_groups * static_cast<int64_t>(sizeof(Panel<1>));
    }

    // Return the panel that begins with a row of the block; those before it are full.
    template <int rows>
    Panel<rows>* panel(Height<rows>, int64_t row) const {
        return reinterpret_cast<Panel<rows>*>(memory + row * bytes_per_row(num_groups));
    }

    // Call `call` with the first row of each panel, counted within the block, and its height.
    template <class Call>
    void each_panel(Call call) const {
        for (int64_t row = 0; row < num_rows; row += PANEL_ROWS)
            with_height(smaller(PANEL_ROWS, num_rows - row), [&](auto height) {
                call(row, height);
            });
    }
};

typedef float FourFloats __attribute__((vector_size(16)));
typedef int32_t FourInts __attribute__((vector_size(16)));

constexpr int GROUP_VECTORS = GROUP / LANES;

// What is found in one group of four rows: a row has a lane.
struct HalfSums {
    FourInts first, second;
};

#if defined(__AVX2__)

// Combine the four lanes of each half of four vectors: lane i of a half of the result is what was in
// that half of vector i.
template <class Combine>
inline __m256i fold_halves(const __m256i (&of)[4], Combine combine) {
    const auto pairs = [&](__m256i a, __m256i b) {
        return combine(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    };
    const __m256i front = pairs(of[0], of[1]), back = pairs(of[2], of[3]);
    return combine(_mm256_unpacklo_epi64(front, back), _mm256_unpackhi_epi64(front, back));
}

inline FourInts low_half(__m256i value) {
    return reinterpret_cast<FourInts>(_mm256_castsi256_si128(value));
}

inline FourInts high_half(__m256i value) {
    return reinterpret_cast<FourInts>(_mm256_extracti128_si256(value, 1));
}

// Return the largest lane of each of four vectors.
inline FourInts largest_lanes(const IntVec (&of)[4]) {
    __m256i eights[4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
#if defined(__AVX512F__)
        const __m512i all = reinterpret_cast<__m512i>(of[r]);
        eights[r] = _mm256_max_epi32(
            _mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1)
        );
#else
        eights[r] = reinterpret_cast<__m256i>(of[r]);
#endif
    }
    const __m256i halves =
        fold_halves(eights, [](__m256i a, __m256i b) { return _mm256_max_epi32(a, b); });
    const FourInts low = low_half(halves), high = high_half(halves);
    return low > high ? low : high;
}

// Return the low bytes of all lanes.
inline __m256i low_bytes(const IntVec (&of)[GROUP_VECTORS]) {
#if defined(__AVX512F__)
    const auto bytes = [&](int i) {
        return _mm512_cvtepi32_epi8(reinterpret_cast<__m512i>(of[i]));
    };
    return _mm256_inserti128_si256(_mm256_castsi128_si256(bytes(0)), bytes(1), 1);
#else
    const __m256i low = _mm256_set1_epi32(255);
    const auto part = [&](int i) {
        return _mm256_and_si256(reinterpret_cast<__m256i>(of[i]), low);
    };
    const __m256i mixed = _mm256_packus_epi16(
        _mm256_packus_epi32(part(0), part(1)), _mm256_packus_epi32(part(2), part(3))
    );
    return _mm256_permutevar8x32_epi32(mixed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
#endif
}

// Store the low bytes of all lanes as codes, and return their sums.
inline HalfSums store_codes(const IntVec (&of)[4][GROUP_VECTORS], int8_t* const (&to)[4]) {
    __m256i sums[4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
        const __m256i codes = low_bytes(of[r]);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to[r]), codes);
        const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), codes);
        sums[r] = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    }
    const __m256i halves =
        fold_halves(sums, [](__m256i a, __m256i b) { return _mm256_add_epi32(a, b); });
    return {low_half(halves), high_half(halves)};
}

#else

inline FourInts largest_lanes(const IntVec (&of)[4]) {
    FourInts largest = {};
    for (int r = 0; r < 4; ++r)
        for (int i = 0; i < LANES; ++i) largest[r] = larger(largest[r], of[r][i]);
    return largest;
}

inline HalfSums store_codes(const IntVec (&of)[4][GROUP_VECTORS], int8_t* const (&to)[4]) {
    HalfSums sums = {};
    for (int r = 0; r < 4; ++r)
        for (int i = 0; i < GROUP; ++i) {
            to[r][i] = static_cast<int8_t>(of[r][i / LANES][i % LANES]);
            (i < GROUP / 2 ? sums.first : sums.second)[r] += to[r][i];
        }
    return sums;
}

#endif

// Round one group of up to four rows of a panel, from `first` on.
//
// Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits. Where an entry is
// infinite or NaN, the scale is NaN, and so is the whole result row. A group whose largest entry is
// below 2^-120 counts as zero, so that 127 divided by it is finite.
template <int first, int rows>
inline void round_four(const float* x, int64_t x_row_bytes, Panel<rows>& panel) {
    constexpr int count = rows - first < 4 ? rows - first : 4;
    constexpr int bytes = 4 * count;  // of a number for each row
    const IntVec size_bits = IntVec{} + 0x7fffffff;
    Vec entries[4][GROUP_VECTORS];
    IntVec largest[4] = {};  // as bits: they are ordered as the numbers are, with NaN above all
#pragma GCC unroll 4
    for (int r = 0; r < count; ++r)
#pragma GCC unroll 8
        for (int i = 0; i < GROUP_VECTORS; ++i) {
            entries[r][i] = load(moved(x, (first + r) * x_row_bytes) + i * LANES);
            const IntVec bits = reinterpret_cast<IntVec>(entries[r][i]) & size_bits;
            largest[r] = bits > largest[r] ? bits : largest[r];
        }
    const FourInts peak_bits = largest_lanes(largest);
    const FourFloats peak = reinterpret_cast<FourFloats>(peak_bits), none = {};
    const FourInts is_finite = peak_bits < 0x7f800000, is_zero = peak < 0x1p-120f;
    const FourFloats factors = is_finite & ~is_zero ? 127.0f / peak : none;
    const FourFloats scales =
        is_finite ? (is_zero ? none : peak / 127.0f) : none + __builtin_nanf("");

    const Vec rounder = splat(12582912.0f);
    IntVec rounded[4][GROUP_VECTORS] = {};
    int8_t* codes[4];
    int8_t unused[GROUP];
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
        codes[r] = r < count ? panel.codes[first + r] : unused;
        if (r >= count) continue;
        const Vec factor = splat(factors[r]);
#pragma GCC unroll 8
        for (int i = 0; i < GROUP_VECTORS; ++i)
            rounded[r][i] = reinterpret_cast<IntVec>(entries[r][i] * factor + rounder);
    }
    const HalfSums sums = store_codes(rounded, codes);
    const FourInts minus_sums[] = {-(sums.first + sums.second), -sums.first, -sums.second};
    const FourFloats scaled_sums =
        scales * __builtin_convertvector(sums.first + sums.second, FourFloats);
    std::memcpy(panel.scales + first, &scales, bytes);
    std::memcpy(panel.scaled_sums + first, &scaled_sums, bytes);
    for (int i = 0; i < 3; ++i)
        std::memcpy(panel.minus_sums[i] + first, &minus_sums[i], bytes);
}

// Round the rows of a block.
inline void round_rows(const RowBlock& block, const float* x, int64_t x_row_bytes) {
    block.each_panel([&](int64_t row, auto height) {
        auto* panel = block.panel(height, row);
        const float* rows = moved(x, (block.first_row + row) * x_row_bytes);
        for (int64_t group = 0; group < block.num_groups; ++group) {
            round_four<0>(rows + group * GROUP, x_row_bytes, panel[group]);
            if constexpr (height.rows > 4)
                round_four<4>(rows + group * GROUP, x_row_bytes, panel[group]);
        }
    });
}

}  // namespace
}  // namespace evenflow
