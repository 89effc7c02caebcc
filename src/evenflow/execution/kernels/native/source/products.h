// Products of a panel of rounded rows and a tile of a packed weight.
//
// A vector of codes holds four inputs of as many channels as it has 32-bit lanes. One instruction
// (or a few) multiplies them by the same four inputs of a row, repeated in every lane, and adds up
// the products of each lane. A vector of codes is loaded and unpacked once for all rows of a patch,
// four inputs of a row once for all its tiles, and their sums stay in registers: of eight rows and a
// tile or, where both are plenty, of four rows and two tiles, which takes fewer loads.
#pragma once

#include "packed.h"
#include "rounded_rows.h"
#include "vectors.h"

namespace evenflow {
namespace {

constexpr int PARTS = CHANNELS / LANES;  // vectors that the channels of a tile take
constexpr int CACHE_LINE_BYTES = 64;

#if defined(__AVX512F__)
constexpr int PATCH_TILES = 2;
#else
constexpr int PATCH_TILES = 1;  // there are no registers for more
#endif

// Return a * b + c, rounded once on every processor.
inline Vec fused(Vec a, Vec b, Vec c) {
#if defined(__AVX2__)
    return fma(a, b, c);
#else
    for (int i = 0; i < LANES; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return c;
#endif
}


// Load fp16 numbers.
inline Vec load_halves(const uint8_t* from) {
#if defined(__AVX512F__)
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__AVX2__)
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
    Vec value;
    for (int i = 0; i < LANES; ++i) value[i] = half_to_float(read_half(from + 2 * i));
    return value;
#endif
}

// Load bytes as floats; `Byte` says whether they are signed.
template <class Byte>
inline Vec load_bytes(const uint8_t* from) {
    IntVec integers;
#if defined(__AVX512F__)
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    integers = reinterpret_cast<IntVec>(
        Byte(-1) < 0 ? _mm512_cvtepi8_epi32(bytes) : _mm512_cvtepu8_epi32(bytes)
    );
#elif defined(__AVX2__)
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
    integers = reinterpret_cast<IntVec>(
        Byte(-1) < 0 ? _mm256_cvtepi8_epi32(bytes) : _mm256_cvtepu8_epi32(bytes)
    );
#else
    for (int i = 0; i < LANES; ++i) integers[i] = static_cast<Byte>(from[i]);
#endif
    return __builtin_convertvector(integers, Vec);
}

// Some rows of a panel, times some tiles that lie one behind the other.
template <int rows, int tiles, int height>
struct Patch {
    const Panel<height>* panels;
    int first_row;
};

// Load four codes of a row of x, as one integer.
template <int height>
inline int32_t load_chunk(const Panel<height>& panel, int row, int chunk) {
    int32_t four;
    std::memcpy(&four, panel.codes[row] + CHUNK * chunk, sizeof four);
    return four;
}

// The chunks of a group that share a scale, and which of the panel's sums is theirs.
template <class T>
struct Span {
    int first, count, sum;
    explicit Span(int half)
        : first(half * CHUNKS / 2), count(T::HALVES ? CHUNKS / 2 : CHUNKS),
          sum(T::HALVES ? 1 + half : 0) {}
};

// multiply_span sets dots[tile][row] to the sum of (code - ZERO) * (code of the row) over a span,
// for as many channels as a vector has. As floats they are exact, since none reaches 2^24. `codes`
// is where the group's first vector has these channels.

#if defined(__AVX512F__)

template <class T>
inline __m512i load_codes(const uint8_t* codes, int chunk) {
    const __m512i bytes = _mm512_loadu_si512(codes + chunk % T::VECTORS * CHUNK * CHANNELS);
    if (T::BITS != 4) return bytes;
    const __m512i low = _mm512_set1_epi8(15);
    return _mm512_and_si512(chunk < T::VECTORS ? bytes : _mm512_srli_epi16(bytes, 4), low);
}

template <class T, int rows, int tiles, int height>
inline void multiply_span(
    const uint8_t* codes, int64_t tile_bytes, const Panel<height>& panel, int first_row,
    Span<T> span, Vec (&dots)[tiles][rows]
) {
    __m512i sums[tiles][rows], bytes[tiles];
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
        const __m512i minus_sum = _mm512_set1_epi32(panel.minus_sums[span.sum][first_row + r]);
#pragma GCC unroll 2
        for (int t = 0; t < tiles; ++t)
            sums[t][r] =
                T::AFFINE ? _mm512_setzero_si512() : _mm512_slli_epi32(minus_sum, T::BITS - 1);
    }
#pragma GCC unroll 8
    for (int i = 0; i < span.count; ++i) {
        const int chunk = span.first + i;
#pragma GCC unroll 2
        for (int t = 0; t < tiles; ++t)
            bytes[t] = load_codes<T>(codes + t * tile_bytes, chunk);
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r) {
            const __m512i four = _mm512_set1_epi32(load_chunk(panel, first_row + r, chunk));
#pragma GCC unroll 2
            for (int t = 0; t < tiles; ++t)
                sums[t][r] = _mm512_dpbusd_epi32(sums[t][r], bytes[t], four);
        }
    }
#pragma GCC unroll 2
    for (int t = 0; t < tiles; ++t)
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r) dots[t][r] = _mm512_cvtepi32_ps(sums[t][r]);
}

#elif defined(__AVX2__)

// Keep the compiler from adding up in another order than written, one that takes more registers.
inline void keep(__m256i& sum) {
    asm("" : "+x"(sum));
}

template <class T>
inline __m256i load_codes(const uint8_t* codes, int chunk) {
    const uint8_t* from = codes + chunk % T::VECTORS * CHUNK * CHANNELS;
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    if (T::BITS == 8) return _mm256_xor_si256(bytes, _mm256_set1_epi8(-128));
    if (T::BITS != 4) return bytes;
    const __m256i low = _mm256_set1_epi8(15);
    return _mm256_and_si256(chunk < T::VECTORS ? bytes : _mm256_srli_epi16(bytes, 4), low);
}

// Return the sums of two products each. Codes of 8 bits come as the signed numbers they stand for;
// their signs are given to x, and 2 * 128 * 127 fits.
template <class T>
inline __m256i multiply_pairs(__m256i bytes, __m256i four) {
    if (T::BITS != 8) return _mm256_maddubs_epi16(bytes, four);
    return _mm256_maddubs_epi16(_mm256_abs_epi8(bytes), _mm256_sign_epi8(four, bytes));
}

// Here products of bytes are added up in 16 bits, two of them at a time. Those of 4 bits may be
// added 16 times before they could overflow, those of 5 bits 8 times, of 6 bits 4 times.
template <class T, int rows>
inline void multiply_span(
    const uint8_t* codes, int64_t, const Panel<rows>& panel, int, Span<T> span,
    Vec (&dots)[1][rows]
) {
    constexpr int step = T::BITS == 4 ? 8 : T::BITS == 5 ? 4 : T::BITS == 6 ? 2 : 1;
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i sums[rows];
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r)
        sums[r] = T::AFFINE || T::BITS == 8
                      ? _mm256_setzero_si256()
                      : _mm256_slli_epi32(
                            _mm256_set1_epi32(panel.minus_sums[span.sum][r]), T::BITS - 1
                        );
#pragma GCC unroll 8
    for (int i = 0; i < span.count; i += step) {
        __m256i pairs[rows];
#pragma GCC unroll 8
        for (int j = 0; j < step; ++j) {
            const int chunk = span.first + i + j;
            const __m256i bytes = load_codes<T>(codes, chunk);
#pragma GCC unroll 4
            for (int r = 0; r < rows; ++r) {
                const __m256i four = _mm256_set1_epi32(load_chunk(panel, r, chunk));
                const __m256i products = multiply_pairs<T>(bytes, four);
                pairs[r] = j == 0 ? products : _mm256_add_epi16(pairs[r], products);
                keep(pairs[r]);
            }
        }
#pragma GCC unroll 4
        for (int r = 0; r < rows; ++r) {
            sums[r] = _mm256_add_epi32(sums[r], _mm256_madd_epi16(pairs[r], ones));
            keep(sums[r]);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) dots[0][r] = _mm256_cvtepi32_ps(sums[r]);
}

#else

// Without instructions for bytes, floats multiply fastest; their sums are exact all the same.
template <class T, int rows>
inline void multiply_span(
    const uint8_t* codes, int64_t, const Panel<rows>& panel, int, Span<T> span,
    Vec (&dots)[1][rows]
) {
    for (int r = 0; r < rows; ++r)
        dots[0][r] = splat(static_cast<float>(T::ZERO * panel.minus_sums[span.sum][r]));
    for (int i = 0; i < span.count; ++i) {
        const int chunk = span.first + i;
        IntVec fours;
        std::memcpy(&fours, codes + chunk % T::VECTORS * CHUNK * CHANNELS, sizeof fours);
        if (chunk >= T::VECTORS) fours >>= 4;
        for (int j = 0; j < CHUNK; ++j) {
            const IntVec bytes = fours >> 8 * j & (T::BITS == 4 ? 15 : 255);
            const Vec entries = __builtin_convertvector(bytes, Vec);
            for (int r = 0; r < rows; ++r)
                dots[0][r] += entries * splat(panel.codes[r][CHUNK * chunk + j]);
        }
    }
}

#endif

// The scales and offsets of a group, for the channels of one vector.
template <class T>
inline Vec load_scale(Tile<T, const uint8_t> tile, int64_t group, int part, int half) {
    const int64_t channel = part * LANES;
    const uint8_t* scales = tile.scales(group);
    if (!T::BLOCKS) return load_halves(scales + 2 * channel);
    const Vec block = load_halves(tile.block(group) + 2 * channel);
    if (T::HALVES) return block * load_bytes<int8_t>(scales + half * CHANNELS + channel);
    return block * load_bytes<uint8_t>(scales + channel);
}

template <class T>
inline Vec load_offset(Tile<T, const uint8_t> tile, int64_t group, int part) {
    const int64_t channel = CHANNELS + part * LANES;
    const uint8_t* scales = tile.scales(group);
    if (!T::BLOCKS) return load_halves(scales + 2 * channel);
    return load_halves(tile.block(group) + 2 * channel) * load_bytes<uint8_t>(scales + channel);
}

// What is multiplied into, and where tiles are. Read only: a copy that has just been written would
// have to be waited for.
struct Columns {
    int64_t row_floats, count;
    const float* bias;  // the first channel's, or null
    int64_t tile_bytes;
    const uint8_t* last_tile;
};

// Ask for a group's share of the tile that comes next. Without, few rows would wait for memory most
// of the time: the processor sees a tile's end coming, but not its successor.
template <class T>
inline void fetch(const uint8_t* next_tile, int64_t group) {
    constexpr int64_t bytes = T::CODE_BYTES + T::SCALE_BYTES;
    for (int64_t i = 0; i < bytes; i += CACHE_LINE_BYTES)
        __builtin_prefetch(next_tile + group * bytes + i);
}

// Multiply a patch by the channels of a tile that one vector holds, from one end to the other.
template <class T, int rows, int tiles, int height>
inline void multiply(
    Tile<T, const uint8_t> tile, int part, Patch<rows, tiles, height> patch,
    Vec (&totals)[tiles][rows], int64_t tile_bytes, const uint8_t* next_tile
) {
    const int first_row = patch.first_row;
    for (int64_t group = 0; group < tile.num_groups; ++group) {
        const Panel<height>& panel = patch.panels[group];
        const uint8_t* codes = tile.codes(group) + part * LANES * CHUNK;
        if (part == 0) fetch<T>(next_tile, group);
#pragma GCC unroll 2
        for (int half = 0; half < (T::HALVES ? 2 : 1); ++half) {
            Vec dots[tiles][rows];
            multiply_span(codes, tile_bytes, panel, first_row, Span<T>(half), dots);
#pragma GCC unroll 2
            for (int t = 0; t < tiles; ++t) {
                const Vec scale = load_scale(tile.behind(t * tile_bytes), group, part, half);
#pragma GCC unroll 8
                for (int r = 0; r < rows; ++r) {
                    const Vec factor = scale * splat(panel.scales[first_row + r]);
                    totals[t][r] = fused(dots[t][r], factor, totals[t][r]);
                }
            }
        }
        if (!T::AFFINE) continue;
#pragma GCC unroll 2
        for (int t = 0; t < tiles; ++t) {
            const Vec offset = load_offset(tile.behind(t * tile_bytes), group, part);
#pragma GCC unroll 8
            for (int r = 0; r < rows; ++r)
                totals[t][r] =
                    fused(offset, splat(panel.scaled_sums[first_row + r]), totals[t][r]);
        }
    }
}

// Multiply a patch, into `out`: its panel's first row and its first tile's first channel, which is
// number `channel` of the columns. Inlined, its loops would have to share registers with others.
template <class T, int rows, int tiles, int height>
__attribute__((noinline)) void multiply_and_store(
    Tile<T, const uint8_t> tile, Patch<rows, tiles, height> patch, const Columns& columns,
    float* out, int64_t channel
) {
    const uint8_t* next_tile = tile.start + tiles * columns.tile_bytes;
    if (next_tile > columns.last_tile) next_tile = tile.start;
    const int64_t num_left = columns.count - channel;
    for (int part = 0; part < PARTS && num_left > part * LANES; ++part) {
        Vec totals[tiles][rows] = {};
        multiply(tile, part, patch, totals, columns.tile_bytes, next_tile);
        for (int t = 0; t < tiles; ++t) {
            const int64_t first = t * CHANNELS + part * LANES, count = num_left - first;
            const bool whole = count >= LANES;
            Vec bias = {};
            if (columns.bias != nullptr) {
                const float* from = columns.bias + channel + first;
                bias = whole ? load(from) : load(from, count);
            }
#pragma GCC unroll 8
            for (int r = 0; r < rows; ++r) {
                float* to = out + (patch.first_row + r) * columns.row_floats + first;
                whole ? store(to, totals[t][r] + bias) : store(to, totals[t][r] + bias, count);
            }
        }
    }
}

}  // namespace
}  // namespace evenflow
