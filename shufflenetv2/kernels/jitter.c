/* The colour jitter, as an affine map of three-coloured bytes: the pixels of OpenCV's transform, bit for bit.
 *
 * As in OpenCV, the map's numbers are multiples of 1/1024, and a result is rounded once. `jitter.py` calls it.
 */

#include "pixels.h"

#ifdef IS_COMPILED

#include <math.h>

enum { GROUP = 8, PERIOD = 96 }; /* pixels at a time; bytes, a whole number of pixels and of registers */
enum { ONE = 1024, LIMIT = 32 }; /* of weights */

static const double GREY[3] = {0.114, 0.587, 0.299}; /* ITU-R 601; operations.py has them too */

INLINE int rounded(double number) { return (int)lrintf((float)number * ONE); }

INLINE double mean_grey(const uint8_t *pixels, int count) {
    uint32_t sums[3] = {0};
    for (int left = 3 * count; left > 0;) {
        uint16_t part[PERIOD] = {0}; /* 256 bytes at most add up to one */
        int length = least(left, 256 * PERIOD), i = 0;
        for (; i + PERIOD <= length; i += PERIOD)
            for (int j = 0; j < PERIOD; j++) part[j] += pixels[i + j];
        for (int j = 0; i + j < length; j++) part[j] += pixels[i + j];
        for (int j = 0; j < PERIOD; j++) sums[j % 3] += part[j];
        pixels += length, left -= length;
    }
    double mean = 0;
    for (int i = 0; i < 3; i++) mean += GREY[i] * (sums[i] * (1.0 / count));
    return mean;
}

/* Whether OpenCV computes in this way: otherwise where colours are not mixed, and with numbers that are too large. */
int is_mixture(double own, double shared, double mean) {
    return fabs(shared) > 1e-9 && fabs(own) + fabs(shared) < LIMIT && fabs(mean) < LIMIT;
}

/* A pixel becomes own * pixel + shared * grey(pixel) + mean * (the mean of all pixels' grey).
 *
 * from, to: bytes (count, 3), blue first; may be the same.
 */
int jitter(const uint8_t *from, int count, double own, double shared, double mean, uint8_t *to) {
    if (count < 1 || count > 1 << 24 || !is_mixture(own, shared, mean)) return DECLINED; /* the sums would not fit */
    const __m256i offset = _mm256_set1_epi32(rounded(mean * mean_grey(from, count)) + ONE / 2);
    __m256i blue_green[3], red[3]; /* what each result takes of them */
    for (int i = 0; i < 3; i++) {
        uint16_t weights[3];
        for (int j = 0; j < 3; j++) weights[j] = (uint16_t)rounded(shared * GREY[j] + (i == j ? own : 0));
        blue_green[i] = _mm256_set1_epi32((int)(weights[0] | (uint32_t)weights[1] << 16));
        red[i] = _mm256_set1_epi32(weights[2]);
    }
    /* Four pixels are the lower twelve bytes of the one half and the upper twelve of the other. */
    const __m256i get_blue_green = _mm256_setr_epi8(0, -1, 1, -1, 3, -1, 4, -1, 6, -1, 7, -1, 9, -1, 10, -1,
                                                    4, -1, 5, -1, 7, -1, 8, -1, 10, -1, 11, -1, 13, -1, 14, -1);
    const __m256i get_red = _mm256_setr_epi8(2, -1, -1, -1, 5, -1, -1, -1, 8, -1, -1, -1, 11, -1, -1, -1,
                                             6, -1, -1, -1, 9, -1, -1, -1, 12, -1, -1, -1, 15, -1, -1, -1);
    const __m256i interleave = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11, -1, -1, -1, -1));
    for (int left = count; left > 0; left -= GROUP, from += 3 * GROUP, to += 3 * GROUP) {
        uint8_t last[3 * GROUP];
        int is_last = left < GROUP;
        const uint8_t *source = is_last ? memcpy(last, from, 3 * (size_t)left) : from;
        __m256i pixels = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)source)), colours[3];
        pixels = _mm256_inserti128_si256(pixels, _mm_loadu_si128((const __m128i *)(source + 8)), 1);
        __m256i bg = _mm256_shuffle_epi8(pixels, get_blue_green), r = _mm256_shuffle_epi8(pixels, get_red);
        for (int i = 0; i < 3; i++) {
            __m256i sum = _mm256_add_epi32(_mm256_madd_epi16(bg, blue_green[i]), _mm256_madd_epi16(r, red[i]));
            colours[i] = _mm256_srai_epi32(_mm256_add_epi32(sum, offset), 10);
        }
        __m256i bytes = _mm256_packs_epi32(colours[0], colours[1]);
        bytes = _mm256_shuffle_epi8(_mm256_packus_epi16(bytes, _mm256_packs_epi32(colours[2], colours[2])), interleave);
        store_8_pixels(is_last ? last : to, bytes);
        if (is_last) memcpy(to, last, 3 * (size_t)left);
    }
    return DONE;
}

END_OF_FILE

#endif
