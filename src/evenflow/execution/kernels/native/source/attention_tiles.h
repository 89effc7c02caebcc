// The inner loops of attention: a few query rows against a run of keys, and their weights against
// its values.
//
// A key's entries lie together, so a register with one key per lane would have to be transposed
// first. Here a register holds quads instead: four neighbouring entries of LANES / 4 keys, put
// together by plain 16-byte loads, which a quad of the query, repeated, multiplies.
//
//     register i   k[i][0..3] | k[4 + i][0..3] | k[8 + i][0..3] | ...     i = 0..3
//     query row    q[0..3]    | q[0..3]        | q[0..3]        | ...
//
// So an entry d adds to sum d % 4 of its score, in ascending order, and at the end the four sums
// become one, (0 + 2) + (1 + 3), for a whole register of keys at once. A result's entry adds its
// keys in ascending order. Neither depends on how many rows or keys are worked on together, nor on
// where a run of keys is cut.
#pragma once

#include "kv_rows.h"

namespace evenflow {
namespace {

constexpr int QUAD = 4;
constexpr int QUADS = LANES / QUAD;  // in a register, each of another key
constexpr int TILE_KEYS = 16;        // keys that scores are computed for, at least
constexpr int AHEAD_KEYS = 32;       // how far ahead of their use keys and values are asked for
constexpr int CACHE_LINE = 64;

// Rows worked on together: with four registers of sums each, they leave some for operands.
constexpr int TILE_ROWS = LANES == 16 ? 6 : LANES == 8 ? 3 : 2;

// A run of keys; empty if `last` is not behind `first`.
struct Range {
    int64_t first, last;

    // Return what both have in common.
    Range operator&(Range other) const {
        return {larger(first, other.first), smaller(last, other.last)};
    }
    Range minus(int64_t base) const { return {first - base, last - base}; }
    bool empty() const { return first >= last; }
};

// A number that the compiler knows.
template <int value>
struct Number {
    static constexpr int number = value;
};

// Ask for a cache line, to the second-level cache: it keeps more requests under way than the first.
inline void prefetch(const char* address) {
    __builtin_prefetch(address, 0, 2);
}

// Join the i-th 16 bytes of each of QUADS registers in joined[i].
inline void join(const Vec* rows, Vec* joined) {
#if defined(__AVX512F__)
    const Vec a = _mm512_shuffle_f32x4(rows[0], rows[1], 0x44);
    const Vec b = _mm512_shuffle_f32x4(rows[2], rows[3], 0x44);
    const Vec c = _mm512_shuffle_f32x4(rows[0], rows[1], 0xee);
    const Vec d = _mm512_shuffle_f32x4(rows[2], rows[3], 0xee);
    joined[0] = _mm512_shuffle_f32x4(a, b, 0x88);
    joined[1] = _mm512_shuffle_f32x4(a, b, 0xdd);
    joined[2] = _mm512_shuffle_f32x4(c, d, 0x88);
    joined[3] = _mm512_shuffle_f32x4(c, d, 0xdd);
#elif defined(__AVX2__)
    joined[0] = _mm256_permute2f128_ps(rows[0], rows[1], 0x20);
    joined[1] = _mm256_permute2f128_ps(rows[0], rows[1], 0x31);
#else
    joined[0] = rows[0];
#endif
}

// Make quads of joined bytes.
inline void split_quads(Vec joined, Vec* quads, float) {
    quads[0] = joined;
}

inline void split_quads(Vec joined, Vec* quads, Bf16) {
#if defined(__AVX512F__)
    const __m512i bits = _mm512_castps_si512(joined), zero = _mm512_setzero_si512();
    quads[0] = _mm512_castsi512_ps(_mm512_unpacklo_epi16(zero, bits));
    quads[1] = _mm512_castsi512_ps(_mm512_unpackhi_epi16(zero, bits));
#elif defined(__AVX2__)
    const __m256i bits = _mm256_castps_si256(joined), zero = _mm256_setzero_si256();
    quads[0] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, bits));
    quads[1] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, bits));
#else
    const char* entries = reinterpret_cast<const char*>(&joined);
    quads[0] = load_entries(entries, Bf16{});
    quads[1] = load_entries(entries + QUAD * sizeof(Bf16), Bf16{});
#endif
}

// Codes stay bytes: sixteen of them take the place of a quad. 128 is added to each, since a product
// of bytes takes one without a sign.
inline void split_quads(Vec joined, Vec* quads, Int8) {
    quads[0] = reinterpret_cast<Vec>(reinterpret_cast<IntVec>(joined) ^ static_cast<int>(0x80808080));
}

// Quads that 16 bytes of entries make.
template <class Entry>
constexpr int SHARE = 16 / (QUAD * sizeof(Entry));
template <>
constexpr int SHARE<Int8> = 1;

// Repeat a quad all over a register.
inline Vec repeat(const float* quad) {
#if defined(__AVX512F__)
    return _mm512_broadcast_f32x4(_mm_loadu_ps(quad));
#elif defined(__AVX2__)
    return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(quad));
#else
    return load(quad);
#endif
}

#if defined(__AVX2__)

// Interleave the lower or the upper halves of each 16 bytes of two registers, by 4 or by 8 bytes.
#if defined(__AVX512F__)
inline Vec low_fours(Vec a, Vec b) {
    return _mm512_unpacklo_ps(a, b);
}
inline Vec high_fours(Vec a, Vec b) {
    return _mm512_unpackhi_ps(a, b);
}
inline Vec low_eights(Vec a, Vec b) {
    return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
}
inline Vec high_eights(Vec a, Vec b) {
    return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
}
#else
inline Vec low_fours(Vec a, Vec b) {
    return _mm256_unpacklo_ps(a, b);
}
inline Vec high_fours(Vec a, Vec b) {
    return _mm256_unpackhi_ps(a, b);
}
inline Vec low_eights(Vec a, Vec b) {
    return _mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(a), _mm256_castps_pd(b)));
}
inline Vec high_eights(Vec a, Vec b) {
    return _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(a), _mm256_castps_pd(b)));
}
#endif

#endif

// Sum the quads of four registers of floats or integers: lane 4 L + i is the sum of quad L of
// register i.
template <class Numbers>
inline Numbers sum_quads(const Numbers* of) {
#if defined(__AVX2__)
    const auto add = [](Vec a, Vec b) {
        return reinterpret_cast<Vec>(reinterpret_cast<Numbers>(a) + reinterpret_cast<Numbers>(b));
    };
    Vec pairs[2];
    for (int i = 0; i < 2; ++i) {
        const Vec a = reinterpret_cast<Vec>(of[2 * i]), b = reinterpret_cast<Vec>(of[2 * i + 1]);
        pairs[i] = add(low_fours(a, b), high_fours(a, b));
    }
    return reinterpret_cast<Numbers>(
        add(low_eights(pairs[0], pairs[1]), high_eights(pairs[0], pairs[1]))
    );
#else
    Numbers sums;
    for (int i = 0; i < 4; ++i) sums[i] = (of[i][0] + of[i][2]) + (of[i][1] + of[i][3]);
    return sums;
#endif
}

// Keys, or their values, by their offsets in bytes.
struct Entries {
    const char* base;
    const int64_t* offsets;

    const char* operator[](int64_t key) const { return base + offsets[key]; }
    Entries from(int64_t key) const { return {base, offsets + key}; }
};

// Arrange the quads of TILE_KEYS keys for `score_tile`: for each LANES keys, quad c of register i
// at c * 4 + i. What a key lacks to 16 bytes is 0. `ahead` is what will be read soon.
template <class Entry>
inline void arrange(Entries keys, Entries ahead, int64_t head_dim, int64_t num_quads, float* to) {
    constexpr int STEP = 16 * QUADS;
    const int64_t row_bytes = head_dim * static_cast<int64_t>(sizeof(Entry));
    for (int key = 0; key < TILE_KEYS; key += LANES, to += num_quads * QUAD * LANES)
        for (int i = 0; i < QUAD; ++i) {
            const char *from[QUADS], *next[QUADS];
            for (int j = 0; j < QUADS; ++j) {
                from[j] = keys[key + QUAD * j + i];
                next[j] = ahead[key + QUAD * j + i];
            }
            float* place = to + i * LANES;
            const auto move = [&](const char* const* source, int64_t byte, int64_t count) {
                Vec rows[QUADS], joined[QUADS], quads[SHARE<Entry>];
                for (int j = 0; j < QUADS; ++j)
                    rows[j] = load(reinterpret_cast<const float*>(source[j] + byte));
                join(rows, joined);
                for (int part = 0; part < count; ++part) {
                    split_quads(joined[part], quads, Entry{});
                    for (int c = 0; c < SHARE<Entry>; ++c, place += QUAD * LANES)
                        store(place, quads[c]);
                }
            };
            int64_t byte = 0;
            for (; byte + STEP <= row_bytes; byte += STEP) {
                if (byte % CACHE_LINE == 0)
                    for (int j = 0; j < QUADS; ++j) prefetch(next[j] + byte);
                move(from, byte, QUADS);
            }
            if (byte < row_bytes) {
                char rest[QUADS][STEP] = {};
                const char* copies[QUADS];
                for (int j = 0; j < QUADS; ++j) {
                    std::memcpy(rest[j], from[j] + byte, static_cast<size_t>(row_bytes - byte));
                    copies[j] = rest[j];
                }
                move(copies, 0, (row_bytes - byte + 15) / 16);
            }
        }
}

// Score an arranged tile of keys for each row: out[row][0..TILE_KEYS) = query[row] . key.
//
// The rows' quads lie interleaved: quad c of row r at c * ROWS + r.
template <int ROWS>
inline void score_tile(
    const float* queries, const float* keys, int64_t num_quads, float* out, int64_t stride
) {
    for (int first = 0; first < TILE_KEYS; first += LANES) {
        Vec sums[ROWS][QUAD] = {};
        const float* query = queries;
        for (int64_t c = 0; c < num_quads; ++c, query += ROWS * QUAD, keys += QUAD * LANES) {
            Vec factors[ROWS];
#pragma GCC unroll 8
            for (int row = 0; row < ROWS; ++row) factors[row] = repeat(query + row * QUAD);
#pragma GCC unroll 4
            for (int i = 0; i < QUAD; ++i) {
                const Vec quads = load(keys + i * LANES);
#pragma GCC unroll 8
                for (int row = 0; row < ROWS; ++row)
                    sums[row][i] = fma(factors[row], quads, sums[row][i]);
            }
        }
        for (int row = 0; row < ROWS; ++row)
            store(out + row * stride + first, sum_quads(sums[row]));
    }
}

// Add weight * value of some keys to WIDE registers of each row's sums. `rest` is how many
// entries the last, narrower register has.
template <class Entry, int ROWS, int WIDE, class... Rest>
inline void add_columns(
    float* sums, int64_t stride, const float* weights, int64_t weight_stride, Entries values,
    Entries ahead, int64_t count, int64_t column, Rest... rest
) {
    Vec total[ROWS][WIDE];
    for (int row = 0; row < ROWS; ++row)
        for (int i = 0; i < WIDE; ++i)
            total[row][i] = load(sums + row * stride + column + i * LANES, rest...);
    const int64_t first_byte = column * static_cast<int64_t>(sizeof(Entry));
    constexpr int BYTES = WIDE * LANES * sizeof(Entry);
    for (int64_t key = 0; key < count; ++key) {
        const char* place = values[key] + first_byte;
        const char* next = ahead[key] + first_byte;
        for (int byte = 0; byte < BYTES; byte += CACHE_LINE) prefetch(next + byte);
        Vec factors[ROWS];
#pragma GCC unroll 8
        for (int row = 0; row < ROWS; ++row)
            factors[row] = splat(weights[row * weight_stride + key]);
#pragma GCC unroll 4
        for (int i = 0; i < WIDE; ++i) {
            const Vec entries = load_entries(place + i * (BYTES / WIDE), Entry{}, rest...);
#pragma GCC unroll 8
            for (int row = 0; row < ROWS; ++row)
                total[row][i] = fma(factors[row], entries, total[row][i]);
        }
    }
    for (int row = 0; row < ROWS; ++row)
        for (int i = 0; i < WIDE; ++i)
            store(sums + row * stride + column + i * LANES, total[row][i], rest...);
}

// Add weight * value of some keys to each row's sums.
template <class Entry, int ROWS>
inline void add_weighted(
    float* sums, int64_t stride, const float* weights, int64_t weight_stride, Entries values,
    Entries ahead, int64_t count, int64_t head_dim
) {
    const auto add = [=](auto wide, int64_t column, auto... rest) {
        add_columns<Entry, ROWS, decltype(wide)::number>(
            sums, stride, weights, weight_stride, values, ahead, count, column, rest...
        );
    };
    int64_t column = 0;
    for (; column + 4 * LANES <= head_dim; column += 4 * LANES) add(Number<4>{}, column);
    for (; column + LANES <= head_dim; column += LANES) add(Number<1>{}, column);
    if (column < head_dim) add(Number<1>{}, column, head_dim - column);
}

struct Softmax {
    float peak, total;
};

// Turn the scores of keys `first` to `last` into weights e^(score - peak). Those of the other keys
// in the same tiles become 0, and a weight's place among all keys decides where it is added.
inline Softmax exponentiate(float* scores, int64_t first, int64_t last) {
    constexpr int WIDE = TILE_KEYS / LANES;
    const int64_t begin = first / TILE_KEYS * TILE_KEYS;
    const int64_t end = (last + TILE_KEYS - 1) / TILE_KEYS * TILE_KEYS;
    for (int64_t key = begin; key < first; ++key) scores[key] = -__builtin_inff();
    for (int64_t key = last; key < end; ++key) scores[key] = -__builtin_inff();
    Vec peaks = splat(-__builtin_inff());
    for (int64_t key = begin; key < end; key += LANES) peaks = max(load(scores + key), peaks);
    const float peak = largest(peaks);
    Vec totals[WIDE] = {};
    for (int64_t key = begin; key < end; key += TILE_KEYS)
        for (int i = 0; i < WIDE; ++i) {
            const Vec weights = exp(load(scores + key + i * LANES) - peak);
            store(scores + key + i * LANES, weights);
            totals[i] += weights;
        }
    for (int width = WIDE / 2; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) totals[i] += totals[i + width];
    return {peak, sum(totals[0])};
}

}  // namespace
}  // namespace evenflow
