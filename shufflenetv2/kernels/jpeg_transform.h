/* Inverse cosine transform of a block: the integer arithmetic of libjpeg-turbo, bit for bit. */

#ifndef JPEG_TRANSFORM_H
#define JPEG_TRANSFORM_H

#include "jpeg.h"

typedef int32_t Int32x8 __attribute__((vector_size(32)));

/* Transform eight columns at once, in fixed point with 13 fractional bits, and divide by 2 ^ shift. The results are eight
 * [Loeffler, Ligtenberg, Moschytz: Practical fast 1-D DCT algorithms with 11 multiplications, 1989], four or two samples. */
INLINE void transform_8(Int32x8 x[8], int shift) {
    Int32x8 half = (Int32x8){0} + (1 << (shift - 1));
    Int32x8 z1 = (x[2] + x[6]) * 4433, z5 = (x[1] + x[3] + x[5] + x[7]) * 9633;
    Int32x8 t0 = ((x[0] + x[4]) << 13) + half, t1 = ((x[0] - x[4]) << 13) + half;
    Int32x8 t2 = z1 - x[6] * 15137, t3 = z1 + x[2] * 6270;
    Int32x8 z3 = z5 - (x[3] + x[7]) * 16069, z4 = z5 - (x[1] + x[5]) * 3196;
    Int32x8 z6 = (x[1] + x[7]) * 7373, z7 = (x[3] + x[5]) * 20995;
    Int32x8 even[4] = {t0 + t3, t1 + t2, t1 - t2, t0 - t3};
    Int32x8 odd[4] = {x[1] * 12299 - z6 + z4, x[3] * 25172 - z7 + z3, x[5] * 16819 - z7 + z4, x[7] * 2446 - z6 + z3};
    for (int i = 0; i < 4; i++) x[i] = (even[i] + odd[i]) >> shift, x[7 - i] = (even[i] - odd[i]) >> shift;
}

INLINE void transform_4(Int32x8 x[8], int shift) {
    Int32x8 t0 = (x[0] << 14) + (1 << (shift - 1)), t2 = x[2] * 15137 - x[6] * 6270;
    Int32x8 even[2] = {t0 + t2, t0 - t2};
    Int32x8 odd[2] = {x[1] * 20995 + x[3] * 7373 - x[5] * 4926 - x[7] * 4176,
                      x[1] * 8697 - x[3] * 17799 + x[5] * 11893 - x[7] * 1730};
    for (int i = 0; i < 2; i++) x[i] = (even[i] + odd[i]) >> shift, x[3 - i] = (even[i] - odd[i]) >> shift;
}

INLINE void transform_2(Int32x8 x[8], int shift) {
    Int32x8 even = (x[0] << 15) + (1 << (shift - 1)), odd = x[1] * 29692 - x[3] * 10426 + x[5] * 6967 - x[7] * 5906;
    x[0] = (even + odd) >> shift, x[1] = (even - odd) >> shift;
}

INLINE void transpose(Int32x8 x[8]) {
    __m256i a[8], b[8];
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_epi32((__m256i)x[i], (__m256i)x[i + 1]);
        a[i + 1] = _mm256_unpackhi_epi32((__m256i)x[i], (__m256i)x[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            b[i + 2 * j] = _mm256_unpacklo_epi64(a[i + j], a[i + j + 2]);
            b[i + 2 * j + 1] = _mm256_unpackhi_epi64(a[i + j], a[i + j + 2]);
        }
    for (int i = 0; i < 4; i++) {
        x[i] = (Int32x8)_mm256_permute2x128_si256(b[i], b[i + 4], 0x20);
        x[i + 4] = (Int32x8)_mm256_permute2x128_si256(b[i], b[i + 4], 0x31);
    }
}

/* Return whether the sum of the absolute values in each column is at most MAX_SUM. */
INLINE int are_columns_small(const Int32x8 x[8]) {
    __m256i sums = _mm256_abs_epi32((__m256i)x[0]);
    for (int i = 1; i < 8; i++) sums = _mm256_add_epi32(sums, _mm256_abs_epi32((__m256i)x[i]));
    __m256i is_large = _mm256_cmpgt_epi32(sums, _mm256_set1_epi32(MAX_SUM));
    return _mm256_testz_si256(is_large, is_large);
}

/* Write a block's size x size samples. `sum` is the sum of the absolute values of its coefficients. Return whether all values
 * are in the range of regular files. */
INLINE int transform(const int16_t block[BLOCK_SIZE], uint32_t sum, int is_flat, int size, uint8_t *to, ptrdiff_t stride) {
    if (is_flat || size == 1) {
        int sample = ((block[0] + 4) >> 3) + 128;
        for (int row = 0; row < size; row++) memset(to + row * stride, min(max(sample, 0), 255), (size_t)size);
        return sum <= MAX_FLAT;
    }
    int is_regular = sum <= MAX_SUM;
    Int32x8 x[8];
    for (int row = 0; row < 8; row++) x[row] = (Int32x8)_mm256_cvtepi16_epi32(_mm_load_si128((const __m128i *)block + row));
    /* The intermediate values keep two more bits than the samples. A smaller transform divides by more. */
    if (size == 8) transform_8(x, 13 - 2);
    else if (size == 4) transform_4(x, 13 - 2 + 1);
    else transform_2(x, 13 - 2 + 2);
    transpose(x);
    if (UNLIKELY(sum > SMALL_SUM)) is_regular &= are_columns_small(x);
    if (size == 8) transform_8(x, 13 + 2 + 3);
    else if (size == 4) transform_4(x, 13 + 2 + 3 + 1);
    else transform_2(x, 13 + 2 + 3 + 2);
    transpose(x);
    uint8_t samples[64];
    for (int row = 0; row < size;
         row += 4) { /* packing clamps; it works within 128-bit halves, so the permutation restores the order */
        __m256i upper = _mm256_packs_epi32((__m256i)x[row], (__m256i)x[row + 1]);
        __m256i lower = _mm256_packs_epi32((__m256i)x[row + 2], (__m256i)x[row + 3]);
        __m256i bytes = _mm256_add_epi8(_mm256_packs_epi16(upper, lower), _mm256_set1_epi8((char)128));
        bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        _mm256_storeu_si256((__m256i *)(samples + 8 * row), bytes);
    }
    for (int row = 0; row < size; row++) memcpy(to + row * stride, samples + 8 * row, (size_t)size);
    return is_regular;
}

#endif
