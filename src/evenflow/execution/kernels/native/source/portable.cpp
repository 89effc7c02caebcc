#define ISA portable
#include "kernels.inc"

// Return the number of the best instruction set this processor has: 2 is AVX-512 with VNNI, 1 is
// AVX2 with FMA, 0 is what any processor has.
EXPORT int best_isa() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512vnni");
    return avx512 ? 2 : 1;
#else
    return 0;
#endif
}
