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

// Combine all lanes of a vector.
template <class Combine>
inline int32_t fold(IntVec value, Combine combine) {
#if defined(__AVX2__)
    typedef int32_t Eight __attribute__((vector_size(32)));
    typedef int32_t Four __attribute__((vector_size(16)));
#if defined(__AVX512F__)
    const __m512i sixteen = reinterpret_cast<__m512i>(value);
    const Eight eight = combine(
        reinterpret_cast<Eight>(_mm512_castsi512_si256(sixteen)),
        reinterpret_cast<Eight>(_mm512_extracti64x4_epi64(sixteen, 1))
    );
#else
    const Eight eight = value;
#endif
    const __m256i halves = reinterpret_cast<__m256i>(eight);
    Four four = combine(
        reinterpret_cast<Four>(_mm256_castsi256_si128(halves)),
        reinterpret_cast<Four>(_mm256_extracti128_si256(halves, 1))
    );
    const auto swapped = [&four] { return reinterpret_cast<__m128i>(four); };
    four = combine(four, reinterpret_cast<Four>(_mm_shuffle_epi32(swapped(), 0x4e)));
    four = combine(four, reinterpret_cast<Four>(_mm_shuffle_epi32(swapped(), 0xb1)));
    return four[0];
#else
    int32_t result = value[0];
    for (int i = 1; i < LANES; ++i) result = combine(result, value[i]);
    return result;
#endif
}

// Round one group of a row.
//
// Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits. Where an entry is
// infinite or NaN, the scale is NaN, and so is the whole result row. A group whose largest entry is
// below 2^-120 counts as zero, so that 127 divided by it is finite.
template <int rows>
inline void round_group(const float* x, Panel<rows>& panel, int row) {
    typedef int8_t Bytes __attribute__((vector_size(LANES)));
    constexpr int count = GROUP / LANES;
    const IntVec size_bits = IntVec{} + 0x7fffffff;
    Vec entries[count];
    IntVec largest = {};  // as bits: they are ordered as the numbers are, with NaN above all
#pragma GCC unroll 8
    for (int i = 0; i < count; ++i) {
        entries[i] = load(x + i * LANES);
        const IntVec bits = reinterpret_cast<IntVec>(entries[i]) & size_bits;
        largest = bits > largest ? bits : largest;
    }
    const int32_t peak_bits = fold(largest, [](auto a, auto b) { return a > b ? a : b; });
    float peak;
    std::memcpy(&peak, &peak_bits, sizeof peak);
    const bool finite = peak_bits < 0x7f800000, zero = peak < 0x1p-120f;

    const Vec factor = splat(finite && !zero ? 127.0f / peak : 0.0f);
    const Vec rounder = splat(12582912.0f);
    IntVec half_sums[2] = {};
#pragma GCC unroll 8
    for (int i = 0; i < count; ++i) {
        const Vec entry = finite ? entries[i] : Vec{};
        const IntVec codes =
            reinterpret_cast<IntVec>(entry * factor + rounder) - reinterpret_cast<IntVec>(rounder);
        const Bytes bytes = __builtin_convertvector(codes, Bytes);
        std::memcpy(panel.codes[row] + i * LANES, &bytes, sizeof bytes);
        half_sums[i / (count / 2)] += codes;
    }
    const auto add = [](auto a, auto b) { return a + b; };
    const int32_t first = fold(half_sums[0], add), second = fold(half_sums[1], add);
    const float scale = !finite ? __builtin_nanf("") : zero ? 0.0f : peak / 127.0f;
    panel.scales[row] = scale;
    panel.scaled_sums[row] = scale * static_cast<float>(first + second);
    panel.minus_sums[0][row] = -(first + second);
    panel.minus_sums[1][row] = -first;
    panel.minus_sums[2][row] = -second;
}

// Round the rows of a block.
inline void round_rows(const RowBlock& block, const float* x, int64_t x_row_bytes) {
    block.each_panel([&](int64_t row, auto height) {
        auto* panel = block.panel(height, row);
        const float* rows = moved(x, (block.first_row + row) * x_row_bytes);
        for (int64_t group = 0; group < block.num_groups; ++group)
            for (int r = 0; r < height.rows; ++r)
                round_group(moved(rows, r * x_row_bytes) + group * GROUP, panel[group], r);
    });
}

}  // namespace
}  // namespace evenflow
