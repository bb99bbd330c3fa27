/* What the files of the compiled part of the data path share. They are written for x86-64 with AVX2 and BMI2, whatever the
 * compiler's options say; `is_supported` tells whether the processor is one. What works on pixels returns DONE, or DECLINED for
 * what it leaves to a library. `pixels.py` has the arguments' types.
 */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { DONE = 0, DECLINED = 1 };

int is_supported(void);
int jpeg_decode(const uint8_t *encoded, size_t length, int scale, int top, int left, int height, int width, uint8_t *pixels,
                uint8_t *memory, size_t size);
int resize_bilinear(const uint8_t *from, ptrdiff_t stride, int height, int width, uint8_t *to, int new_height, int new_width,
                    int is_mirrored, int is_upside_down, uint8_t *memory, size_t size);
int is_mixture(double own, double shared, double mean);
int jitter(const uint8_t *from, int count, double own, double shared, double mean, uint8_t *to);
int jpeg_cut(const uint8_t *encoded, size_t length, int scale, int top, int left, int height, int width, uint8_t *to, int new_height,
             int new_width, int is_mirrored, int is_upside_down, double own, double shared, double mean, uint8_t *memory, size_t size);

#if defined(__x86_64__) && defined(__GNUC__)
#define IS_COMPILED 1

#include <immintrin.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,bmi,bmi2"))), apply_to = function)
#define END_OF_FILE _Pragma("clang attribute pop")
#else
#pragma GCC target("avx2,bmi,bmi2")
#define END_OF_FILE
#endif

#define INLINE static inline __attribute__((always_inline))
#define UNLIKELY(x) __builtin_expect(!!(x), 0)

INLINE int least(int a, int b) { return a < b ? a : b; }
INLINE int most(int a, int b) { return a > b ? a : b; }

/* Eight pixels, which are the lower twelve bytes of both halves, blue first. */
INLINE void store_8_pixels(uint8_t *to, __m256i pixels) {
    pixels = _mm256_permutevar8x32_epi32(pixels, _mm256_setr_epi32(0, 1, 2, 4, 5, 6, 7, 7));
    _mm_storeu_si128((__m128i *)to, _mm256_castsi256_si128(pixels));
    _mm_storel_epi64((__m128i *)(to + 16), _mm256_extracti128_si256(pixels, 1));
}

#endif
