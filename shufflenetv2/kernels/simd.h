/* AVX2 support that the pixel functions share.
 *
 * The functions are written for x86-64 with AVX2 and BMI2. They are compiled for these instructions with any options of the
 * compiler; `is_supported` reports whether the processor has them. HAS_SIMD is defined if the compiler can compile them.
 * END_OF_FILE has to end each C file.
 */

#ifndef SIMD_H
#define SIMD_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { DONE = 0, DECLINED = 1 };

#if defined(__x86_64__) && defined(__GNUC__)
#define HAS_SIMD 1

#include <immintrin.h>
#include <math.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,bmi,bmi2"))), apply_to = function)
#define END_OF_FILE _Pragma("clang attribute pop")
#else
#pragma GCC target("avx2,bmi,bmi2")
#define END_OF_FILE
#endif

#define INLINE static inline __attribute__((always_inline))
#define UNLIKELY(x) __builtin_expect(!!(x), 0)

INLINE int min(int a, int b) {
    return a < b ? a : b;
}

INLINE int max(int a, int b) {
    return a > b ? a : b;
}

/* Return whether OpenCV's transform uses fixed point for these coefficients (see `jitter`): not if they are too large, and not
 * if the colours are not mixed. */
INLINE int can_jitter(double own, double shared, double mean) {
    enum { LIMIT = 32 };
    return fabs(shared) > 1e-9 && fabs(own) + fabs(shared) < LIMIT && fabs(mean) < LIMIT;
}

/* Store eight BGR pixels, given in the lower twelve bytes of both 128-bit halves: 24 bytes. */
INLINE void store_8_pixels(uint8_t *to, __m256i pixels) {
    pixels = _mm256_permutevar8x32_epi32(pixels, _mm256_setr_epi32(0, 1, 2, 4, 5, 6, 7, 7));
    _mm_storeu_si128((__m128i *)to, _mm256_castsi256_si128(pixels));
    _mm_storel_epi64((__m128i *)(to + 16), _mm256_extracti128_si256(pixels, 1));
}

#endif

#endif
