/* Convert samples to BGR pixels: the chroma interpolation and rounding of libjpeg-turbo, bit for bit.
 *
 * The functions write up to 47 bytes beyond the last pixel of a row.
 */

#ifndef JPEG_COLOR_H
#define JPEG_COLOR_H

#include "jpeg.h"

INLINE __m256i load_16(const uint8_t *from) {
    return _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)from));
}

/* Write one sample of a component for each of the pixels [left, left + width) of a row. A sample covers h x v pixels: samples
 * are copied, repeated or interpolated (three quarters of the nearer sample and one quarter of the farther one). `sums` is
 * scratch. */
INLINE void expand_row(const Component *c, int h, int v, int is_interpolated, int row, int left, int width, uint16_t *sums,
                       uint8_t *to) {
    int near_row = row / v, far_row = near_row;
    if (v == 2 && is_interpolated) far_row = row % 2 ? min(near_row + 1, c->height - 1) : max(near_row - 1, 0);
    const uint8_t *near_samples = c->samples + (near_row - c->top) * (ptrdiff_t)c->stride - c->left;
    const uint8_t *far_samples = c->samples + (far_row - c->top) * (ptrdiff_t)c->stride - c->left;
    if (h == 1 && v == 1) {
        memcpy(to, near_samples + left, (size_t)width);
        return;
    }
    if (!is_interpolated || h == 1) {
        int bias = 1 + row % 2;
        for (int x = 0; x < width; x++)
            to[x] = v == 1 ? near_samples[(left + x) / 2]
                           : (uint8_t)((3 * near_samples[left + x] + far_samples[left + x] + bias) >> 2);
        return;
    }
    int first = left / 2, count = (left + width - 1) / 2 + 1 - first;
    sums += 16; /* sums[-1] is used */
    for (int i = 0; i < count; i += 16) {
        __m256i sum = load_16(near_samples + first + i);
        if (v == 2) sum = _mm256_add_epi16(_mm256_mullo_epi16(sum, _mm256_set1_epi16(3)), load_16(far_samples + first + i));
        _mm256_storeu_si256((__m256i *)(sums + i), sum);
    }
    int before = max(first - 1, 0), after = min(first + count, c->width - 1);
    sums[-1] = (uint16_t)(v == 2 ? 3 * near_samples[before] + far_samples[before] : near_samples[before]);
    sums[count] = (uint16_t)(v == 2 ? 3 * near_samples[after] + far_samples[after] : near_samples[after]);
    int shift = v == 2 ? 4 : 2;
    __m256i even_bias = _mm256_set1_epi16(v == 2 ? 8 : 1), odd_bias = _mm256_set1_epi16(v == 2 ? 7 : 2);
    to -= left % 2;
    for (int i = 0; i < count; i += 16, to += 32) {
        __m256i near_sum = _mm256_mullo_epi16(_mm256_loadu_si256((const __m256i *)(sums + i)), _mm256_set1_epi16(3));
        __m256i even = _mm256_add_epi16(near_sum, _mm256_loadu_si256((const __m256i *)(sums + i - 1)));
        __m256i odd = _mm256_add_epi16(near_sum, _mm256_loadu_si256((const __m256i *)(sums + i + 1)));
        even = _mm256_srli_epi16(_mm256_add_epi16(even, even_bias), shift);
        odd = _mm256_srli_epi16(_mm256_add_epi16(odd, odd_bias), shift);
        _mm256_storeu_si256((__m256i *)to, _mm256_or_si256(even, _mm256_slli_epi16(odd, 8)));
    }
}

/* Convert YCbCr to BGR as JFIF defines it: red = y + 1.402 cr, green = y - 0.344136 cb - 0.714136 cr, blue = y + 1.772 cb,
 * rounded. A factor is split into an integer and a fraction; the fraction times 65536 fits into 16 bits. */
INLINE void ycc_to_bgr_row(const uint8_t *y, const uint8_t *cb, const uint8_t *cr, int width, uint8_t *to) {
    const __m256i one = _mm256_set1_epi16(1), half = _mm256_set1_epi32(1 << 15), middle = _mm256_set1_epi16(128);
    const __m256i blue = _mm256_set1_epi16(-14942), red = _mm256_set1_epi16(26345);
    const __m256i green = _mm256_unpacklo_epi16(_mm256_set1_epi16(-22554), _mm256_set1_epi16(18734));
    /* Sources of the first 16 and the last 8 of 24 bytes: eight blue and eight green values (bg), and eight red values (r). */
    const __m256i bg_16 = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 8, -1, 1, 9, -1, 2, 10, -1, 3, 11, -1, 4, 12, -1, 5));
    const __m256i r_16 = _mm256_broadcastsi128_si256(_mm_setr_epi8(-1, -1, 0, -1, -1, 1, -1, -1, 2, -1, -1, 3, -1, -1, 4, -1));
    const __m256i bg_8 =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(13, -1, 6, 14, -1, 7, 15, -1, -1, -1, -1, -1, -1, -1, -1, -1));
    const __m256i r_8 = _mm256_broadcastsi128_si256(_mm_setr_epi8(-1, 5, -1, -1, 6, -1, -1, 7, -1, -1, -1, -1, -1, -1, -1, -1));
    for (int i = 0; i < width; i += 16, to += 48) {
        __m256i l = load_16(y + i), u = _mm256_sub_epi16(load_16(cb + i), middle),
                w = _mm256_sub_epi16(load_16(cr + i), middle);
        __m256i u2 = _mm256_add_epi16(u, u), w2 = _mm256_add_epi16(w, w);
        __m256i b = _mm256_srai_epi16(_mm256_add_epi16(_mm256_mulhi_epi16(u2, blue), one), 1);
        __m256i r = _mm256_srai_epi16(_mm256_add_epi16(_mm256_mulhi_epi16(w2, red), one), 1);
        __m256i g_low = _mm256_add_epi32(_mm256_madd_epi16(_mm256_unpacklo_epi16(u, w), green), half);
        __m256i g_high = _mm256_add_epi32(_mm256_madd_epi16(_mm256_unpackhi_epi16(u, w), green), half);
        __m256i g = _mm256_packs_epi32(_mm256_srai_epi32(g_low, 16), _mm256_srai_epi32(g_high, 16));
        b = _mm256_add_epi16(_mm256_add_epi16(l, u2), b);
        g = _mm256_add_epi16(_mm256_sub_epi16(l, w), g);
        r = _mm256_add_epi16(_mm256_add_epi16(l, w), r);
        __m256i bg = _mm256_packus_epi16(b, g), rr = _mm256_packus_epi16(r, r);
        __m256i bytes_16 = _mm256_or_si256(_mm256_shuffle_epi8(bg, bg_16), _mm256_shuffle_epi8(rr, r_16));
        __m256i bytes_8 = _mm256_or_si256(_mm256_shuffle_epi8(bg, bg_8), _mm256_shuffle_epi8(rr, r_8));
        _mm_storeu_si128((__m128i *)to, _mm256_castsi256_si128(bytes_16));
        _mm_storel_epi64((__m128i *)(to + 16), _mm256_castsi256_si128(bytes_8));
        _mm_storeu_si128((__m128i *)(to + 24), _mm256_extracti128_si256(bytes_16, 1));
        _mm_storel_epi64((__m128i *)(to + 40), _mm256_extracti128_si256(bytes_8, 1));
    }
}

/* Write the pixels of rows [top, top + height) and columns [left, left + width). `rows` is scratch. */
static void write_pixels(const Jpeg *jpeg, int top, int left, int height, int width, int is_interpolated, uint8_t *rows,
                         uint8_t *to) {
    const Component *c = jpeg->components;
    uint16_t *sums = (uint16_t *)rows; /* half as many as pixels, of two bytes */
    uint8_t *cb = rows + width + 128, *cr = cb + width + 128;
    for (int row = top; row < top + height; row++, to += 3 * (ptrdiff_t)width) {
        const uint8_t *y = c->samples + (row - c->top) * (ptrdiff_t)c->stride + left - c->left;
        if (jpeg->count == 1) {
            for (int x = 0; x < width; x++) to[3 * x] = to[3 * x + 1] = to[3 * x + 2] = y[x];
            continue;
        }
        for (int i = 1; i < 3; i++) {
            int h = c->h * c->block / c[i].block, v = c->v * c->block / c[i].block;
            if (is_interpolated && h == 2 && v == 2) expand_row(&c[i], 2, 2, 1, row, left, width, sums, i == 1 ? cb : cr);
            else if (is_interpolated && h == 2) expand_row(&c[i], 2, 1, 1, row, left, width, sums, i == 1 ? cb : cr);
            else expand_row(&c[i], h, v, is_interpolated, row, left, width, sums, i == 1 ? cb : cr);
        }
        ycc_to_bgr_row(y, cb, cr, width, to);
    }
}

#endif
