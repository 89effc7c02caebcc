// How a quantised weight lies in memory once it is packed.
//
// In every type of a GGUF file a weight is scale * code + offset, for codes below 2^4, 2^5, 2^6 or
// 2^8. Symmetric types have no offset but a zero point: scale * (code - zero). A packed weight
// keeps codes, scales and offsets as they are, and only their places change: 16 rows (output
// channels) form a tile, so that one vector holds the same four inputs of all 16.
//
//     tile    codes of all groups | scales of all groups | scales of all blocks
//     group   32 inputs, as 8 chunks of 4; a vector of codes is 64 bytes: 4 for each channel
//     block   256 inputs, in types whose scales are products: (block's fp16) x (group's integer)
//
//     codes   4-bit: 4 vectors; the low halves of vector v are chunk v, the high ones chunk v + 4
//             else:  8 vectors; vector v is chunk v
//     scales  fp16 of 16 channels, then their offsets where there are any; or, with blocks, two
//             small integers for each channel, and both fp16 in the block
#pragma once

#include "vectors.h"

namespace evenflow {
namespace {

constexpr int CHANNELS = 16;
constexpr int GROUP = 32;
constexpr int CHUNK = 4;
constexpr int CHUNKS = GROUP / CHUNK;
constexpr int BLOCK_GROUPS = 8;

// A type's properties.
//
// bits: a code's; those of 5 and 6 bits take a whole byte.
// affine: has offsets.
// blocks: scales are products of a block's and a group's.
// halves: each half of a group has a scale of its own.
template <int bits, bool affine, bool blocks = false, bool halves = false>
struct Type {
    static constexpr int BITS = bits;
    static constexpr bool AFFINE = affine, BLOCKS = blocks, HALVES = halves;
    static constexpr int ZERO = affine ? 0 : 1 << (bits - 1);
    static constexpr int VECTORS = bits == 4 ? CHUNKS / 2 : CHUNKS;
    static constexpr int CODE_BYTES = VECTORS * CHUNK * CHANNELS;               // per group
    static constexpr int SCALE_BYTES = (blocks || !affine ? 2 : 4) * CHANNELS;  // per group
    static constexpr int BLOCK_BYTES = (affine ? 4 : 2) * CHANNELS;             // if it has blocks
};

// Numbered as in `PACKED_TYPES` of ../../quantised.py.
using Q4_0 = Type<4, false>;
using Q4_1 = Type<4, true>;
using Q5_0 = Type<5, false>;
using Q5_1 = Type<5, true>;
using Q8_0 = Type<8, false>;
using Q4_K = Type<4, true, true>;
using Q5_K = Type<5, true, true>;
using Q6_K = Type<6, false, true, true>;

// Call `call` with a value of the numbered type.
template <class Call>
inline void with_type(int64_t number, Call call) {
    switch (number) {
        case 0: return call(Q4_0{});
        case 1: return call(Q4_1{});
        case 2: return call(Q5_0{});
        case 3: return call(Q5_1{});
        case 4: return call(Q8_0{});
        case 5: return call(Q4_K{});
        case 6: return call(Q5_K{});
        case 7: return call(Q6_K{});
    }
}

// Where the pieces of a tile are; `Byte` is uint8_t or const uint8_t.
template <class T, class Byte>
struct Tile {
    Byte* start;
    int64_t num_groups;

    // Return a tile that lies behind this one.
    Tile behind(int64_t bytes) const { return {start + bytes, num_groups}; }

    Byte* codes(int64_t group) const { return start + group * T::CODE_BYTES; }
    Byte* scales(int64_t group) const {
        return codes(num_groups) + group * T::SCALE_BYTES;
    }
    Byte* block(int64_t group) const {
        return scales(num_groups) + group / BLOCK_GROUPS * T::BLOCK_BYTES;
    }
};

inline uint16_t read_half(const uint8_t* from) {
    return static_cast<uint16_t>(from[0] | from[1] << 8);
}

// Return an fp16 number's value. Its bits, moved to a float's places, are 2^-112 of it.
inline float half_to_float(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
    uint32_t bits = static_cast<uint32_t>(half & 0x7fff) << 13;
    float value;
    if (bits >= 0x0f800000) {  // infinite or NaN
        bits = bits | 0x7f800000 | sign;
        std::memcpy(&value, &bits, sizeof value);
        return value;
    }
    std::memcpy(&value, &bits, sizeof value);
    value *= 0x1p112f;
    return sign ? -value : value;
}

}  // namespace
}  // namespace evenflow
