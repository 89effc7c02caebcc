// The inner loops of attention over int8 keys and values: products of codes with other codes.
//
//     score    (query's code . key's codes) * key's scale * query's scale
//     weight   e^(score - peak) * value's scale, rounded to a code
//     result   (weights' codes . values' codes) * weights' scale
//
// Queries and weights are rounded finer than keys and values: their codes have two parts of a byte
// each, and what is computed with the upper part is shifted before the lower one is added. One
// instruction (or a few) adds up products of four bytes in each 32-bit lane. Keys lie there as quads
// do (see attention_tiles.h), sixteen entries of a key in four lanes. Of values, a lane has the same
// entry of four keys.
//
// Sums are integers, and exact: no order of keys or rows shows in their bits.
#pragma once

#include "attention_tiles.h"

namespace evenflow {
namespace {

constexpr int CODES = 16;             // of a key, in the place of a quad
constexpr int WIDTH = CODES * QUADS;  // entries of a value that a register can have
constexpr int QUERY_SHIFT = 6;        // between the parts of a query's code
constexpr int WEIGHT_SHIFT = 7;       // between those of a weight's
constexpr int LARGEST_QUERY = 64 << QUERY_SHIFT;
constexpr int LARGEST_WEIGHT = 127 << WEIGHT_SHIFT;
constexpr int MOST_ENTRIES = 1024, MOST_KEYS = 1024;  // of a head and of a split: sums fit 32 bits
static_assert(LARGEST_QUERY * 255ll * MOST_ENTRIES < 1ll << 31, "a score's sum overflows");
static_assert(LARGEST_WEIGHT * 127ll * MOST_KEYS < 1ll << 31, "a result's sum overflows");

inline IntVec load_codes(const void* from) {
    IntVec codes;
    std::memcpy(&codes, from, sizeof codes);
    return codes;
}

// Add the products of four bytes to each lane. AVX2 adds two of them in 16 bits, which hold them if
// `a` is 127 or `b` 64 at most.
inline IntVec add_products(IntVec sums, IntVec a_unsigned, IntVec b) {
#if defined(__AVX512F__)
    return reinterpret_cast<IntVec>(_mm512_dpbusd_epi32(
        reinterpret_cast<__m512i>(sums), reinterpret_cast<__m512i>(a_unsigned),
        reinterpret_cast<__m512i>(b)
    ));
#elif defined(__AVX2__)
    const __m256i pairs = _mm256_maddubs_epi16(
        reinterpret_cast<__m256i>(a_unsigned), reinterpret_cast<__m256i>(b)
    );
    return sums + reinterpret_cast<IntVec>(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#else
    const auto* left = reinterpret_cast<const uint8_t*>(&a_unsigned);
    const auto* right = reinterpret_cast<const int8_t*>(&b);
    for (int i = 0; i < 4 * LANES; ++i) sums[i / 4] += left[i] * right[i];
    return sums;
#endif
}

// What a query's codes stand for: code * scale; and what 128 added to every key's code adds.
struct QueryCodes {
    float scale;
    int32_t excess;
};

// Round a query to codes; the upper parts of chunk c go to c * stride, the lower ones behind them.
inline QueryCodes round_query(const float* query, int64_t head_dim, int64_t stride, int8_t* to) {
    const auto entries = [=](int64_t i) {
        if (i + LANES <= head_dim) return load(query + i);
        return i < head_dim ? load(query + i, head_dim - i) : Vec{};
    };
    const int64_t end = (head_dim + CODES - 1) / CODES * CODES;
    IntVec sizes = {};
    for (int64_t i = 0; i < end; i += LANES) sizes = larger_size(entries(i), sizes);
    const Step step(sizes, LARGEST_QUERY);
    IntVec sums = {};
    for (int64_t i = 0; i < end; i += LANES) {
        const IntVec codes = step.codes(entries(i));
        const IntVec upper = (codes + (1 << (QUERY_SHIFT - 1))) >> QUERY_SHIFT;
        int8_t* place = to + i / CODES * stride + i % CODES;
        store(place, __builtin_convertvector(upper, ByteVec));
        store(place + CODES, __builtin_convertvector(codes - (upper << QUERY_SHIFT), ByteVec));
        sums += codes;
    }
    int32_t sum = 0;
    for (int lane = 0; lane < LANES; ++lane) sum += sums[lane];
    return {step.size, 128 * sum};
}

// Score an arranged tile of keys for each row.
//
// The rows' codes lie interleaved: the parts of chunk c of row r at c * ROWS + r.
template <int ROWS>
inline void score_codes(
    const int8_t* queries, const QueryCodes* rounded, const float* keys, const float* key_scales,
    int64_t num_chunks, float* out, int64_t stride
) {
    constexpr int64_t CHUNK_FLOATS = QUAD * LANES;
    for (int first = 0; first < TILE_KEYS; first += LANES, keys += num_chunks * CHUNK_FLOATS) {
        IntVec sums[ROWS][QUAD] = {};
        for (int part = 0; part < 2; ++part) {
            if (part == 1)
                for (int row = 0; row < ROWS; ++row)
                    for (int i = 0; i < QUAD; ++i) sums[row][i] <<= QUERY_SHIFT;
            const int8_t* query = queries + part * CODES;
            for (int64_t c = 0; c < num_chunks; ++c, query += ROWS * 2 * CODES) {
                IntVec factors[ROWS];
#pragma GCC unroll 8
                for (int row = 0; row < ROWS; ++row)
                    factors[row] = reinterpret_cast<IntVec>(
                        repeat(reinterpret_cast<const float*>(query + row * 2 * CODES))
                    );
#pragma GCC unroll 4
                for (int i = 0; i < QUAD; ++i) {
                    const IntVec codes = load_codes(keys + c * CHUNK_FLOATS + i * LANES);
#pragma GCC unroll 8
                    for (int row = 0; row < ROWS; ++row)
                        sums[row][i] = add_products(sums[row][i], codes, factors[row]);
                }
            }
        }
        const Vec scales = load(key_scales + first);
        for (int row = 0; row < ROWS; ++row) {
            const IntVec dots = sum_quads(sums[row]) - rounded[row].excess;
            const Vec scores = __builtin_convertvector(dots, Vec) * scales;
            store(out + row * stride + first, scores * splat(rounded[row].scale));
        }
    }
}

// Interleave the bytes of four rows: lane L's quad of register r has entry 4 r + its place of each
// 16 bytes, from all rows.
inline void interleave(const IntVec (&rows)[4], IntVec (&quads)[4]) {
#if defined(__AVX512F__)
    const auto* r = reinterpret_cast<const __m512i*>(rows);
    auto* to = reinterpret_cast<__m512i*>(quads);
    const __m512i low[] = {_mm512_unpacklo_epi8(r[0], r[1]), _mm512_unpacklo_epi8(r[2], r[3])};
    const __m512i high[] = {_mm512_unpackhi_epi8(r[0], r[1]), _mm512_unpackhi_epi8(r[2], r[3])};
    to[0] = _mm512_unpacklo_epi16(low[0], low[1]);
    to[1] = _mm512_unpackhi_epi16(low[0], low[1]);
    to[2] = _mm512_unpacklo_epi16(high[0], high[1]);
    to[3] = _mm512_unpackhi_epi16(high[0], high[1]);
#elif defined(__AVX2__)
    const auto* r = reinterpret_cast<const __m256i*>(rows);
    auto* to = reinterpret_cast<__m256i*>(quads);
    const __m256i low[] = {_mm256_unpacklo_epi8(r[0], r[1]), _mm256_unpacklo_epi8(r[2], r[3])};
    const __m256i high[] = {_mm256_unpackhi_epi8(r[0], r[1]), _mm256_unpackhi_epi8(r[2], r[3])};
    to[0] = _mm256_unpacklo_epi16(low[0], low[1]);
    to[1] = _mm256_unpackhi_epi16(low[0], low[1]);
    to[2] = _mm256_unpacklo_epi16(high[0], high[1]);
    to[3] = _mm256_unpackhi_epi16(high[0], high[1]);
#else
    const auto* from = reinterpret_cast<const int8_t*>(rows);
    auto* to = reinterpret_cast<int8_t*>(quads);
    for (int entry = 0; entry < CODES; ++entry)
        for (int row = 0; row < 4; ++row) to[4 * entry + row] = from[CODES * row + entry];
#endif
}

// Arrange the values of some tiles of keys for `add_codes`, four keys at a time and as many entries
// of each as `num_runs` registers have, and read their scales. What a value lacks is 0.
inline void arrange_values(
    Entries values, Range tiles, int64_t head_dim, int64_t num_runs, float* to, float* scales
) {
    to += tiles.first * num_runs * LANES;
    for (int64_t key = tiles.first; key < tiles.last; key += 4) {
        for (int i = 0; i < 4; ++i) scales[key + i] = scale_of(values[key + i], head_dim);
        for (int64_t run = 0; run < num_runs; ++run) {
            const int64_t count = smaller(WIDTH, head_dim - run * WIDTH);
            IntVec rows[4] = {}, quads[4];
            for (int i = 0; i < 4; ++i) {
                const char* from = values[key + i] + run * WIDTH;
                if (count == WIDTH)
                    rows[i] = load_codes(from);
                else
                    std::memcpy(&rows[i], from, static_cast<size_t>(count));
            }
            interleave(rows, quads);
            for (int i = 0; i < 4; ++i, to += LANES) store(to, reinterpret_cast<Vec>(quads[i]));
        }
    }
}

// Multiply the weights of some tiles of keys by scales and round them to codes: the upper parts to
// `to`, the lower ones `stride` bytes behind. Returns their step. What is not seen becomes 0,
// whatever stands there.
inline float round_weights(
    float* weights, const float* scales, Range seen, Range tiles, uint8_t* to, int64_t stride
) {
    BitsVec lanes;
    for (int lane = 0; lane < LANES; ++lane) lanes[lane] = static_cast<uint32_t>(lane);
    const auto num_seen = static_cast<uint32_t>(larger(seen.last - seen.first, 0));
    IntVec sizes = {};
    for (int64_t key = tiles.first; key < tiles.last; key += LANES) {
        const BitsVec place = lanes + static_cast<uint32_t>(key - seen.first);
        const Vec product = load(weights + key) * load(scales + key);
        const Vec scaled = place < num_seen ? product : Vec{};
        store(weights + key, scaled);
        sizes = larger_size(scaled, sizes);
    }
    const Step step(sizes, LARGEST_WEIGHT);
    for (int64_t key = tiles.first; key < tiles.last; key += LANES) {
        const IntVec codes = step.codes(load(weights + key));
        const IntVec lower = codes & ((1 << WEIGHT_SHIFT) - 1);
        store(to + key, __builtin_convertvector(codes >> WEIGHT_SHIFT, ByteVec));
        store(to + stride + key, __builtin_convertvector(lower, ByteVec));
    }
    return step.size;
}

// Set each row's sums to those of weight * value over arranged keys `first` to `last`, both
// multiples of four.
template <int ROWS>
inline void add_codes(
    float* sums, int64_t sum_stride, const uint8_t* weights, int64_t part_stride,
    const float* steps, const float* values, int64_t first, int64_t last, int64_t head_dim,
    int64_t num_runs
) {
    const int64_t value_floats = num_runs * LANES;  // of a key
    for (int64_t run = 0; run < num_runs; ++run) {
        IntVec found[ROWS][4] = {};
        for (int part = 0; part < 2; ++part) {
            if (part == 1)
                for (int row = 0; row < ROWS; ++row)
                    for (int i = 0; i < 4; ++i) found[row][i] <<= WEIGHT_SHIFT;
            for (int64_t key = first; key < last; key += 4) {
                const float* place = values + key * value_floats + run * 4 * LANES;
                IntVec factors[ROWS];
#pragma GCC unroll 8
                for (int row = 0; row < ROWS; ++row) {
                    int32_t four;
                    std::memcpy(&four, weights + (2 * row + part) * part_stride + key, sizeof four);
                    factors[row] = IntVec{} + four;
                }
#pragma GCC unroll 4
                for (int i = 0; i < 4; ++i) {
                    const IntVec codes = load_codes(place + i * LANES);
#pragma GCC unroll 8
                    for (int row = 0; row < ROWS; ++row)
                        found[row][i] = add_products(found[row][i], factors[row], codes);
                }
            }
        }
        for (int row = 0; row < ROWS; ++row)
            for (int i = 0; i < 4; i += QUADS) {
                Vec quads[QUADS], entries[QUADS];
                for (int j = 0; j < QUADS; ++j)
                    quads[j] = __builtin_convertvector(found[row][i + j], Vec) * splat(steps[row]);
                join(quads, entries);
                for (int j = 0; j < QUADS; ++j) {
                    const int64_t entry = run * WIDTH + CODES * j + 4 * i;
                    float* to = sums + row * sum_stride + entry;
                    if (entry + LANES <= head_dim)
                        store(to, entries[j]);
                    else if (entry < head_dim)
                        store(to, entries[j], head_dim - entry);
                }
            }
    }
}

}  // namespace
}  // namespace evenflow
