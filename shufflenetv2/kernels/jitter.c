/* Colour jitter as an affine map of BGR pixels: the result of OpenCV's transform, bit for bit.
 *
 * As in OpenCV, coefficients are multiples of 1/1024, and a result is rounded once.
 */

#include "pixels.h"
#include "simd.h"

#ifdef HAS_SIMD

enum { GROUP = 8 };   /* pixels that are mapped at a time */
enum { PERIOD = 96 }; /* bytes that are summed at a time: whole pixels and whole registers */
enum { ONE = 1024 };  /* the coefficient 1 in fixed point */

static const double GREY[3] = {0.114, 0.587, 0.299}; /* ITU-R BT.601, as GREY in operations.py */

INLINE int to_fixed(double number) {
    return (int)lrintf((float)number * ONE);
}

/* Return the grey value of the mean colour. */
INLINE double mean_grey(const uint8_t *pixels, int count) {
    uint32_t sums[3] = {0};
    for (int left = 3 * count; left > 0;) {
        uint16_t partial[PERIOD] = {0}; /* holds the sum of up to 256 bytes */
        int length = min(left, 256 * PERIOD), i = 0;
        for (; i + PERIOD <= length; i += PERIOD)
            for (int j = 0; j < PERIOD; j++) partial[j] += pixels[i + j];
        for (int j = 0; i + j < length; j++) partial[j] += pixels[i + j];
        for (int j = 0; j < PERIOD; j++) sums[j % 3] += partial[j];
        pixels += length, left -= length;
    }
    double mean = 0;
    for (int i = 0; i < 3; i++) mean += GREY[i] * (sums[i] * (1.0 / count));
    return mean;
}

int jitter(const uint8_t *pixels, int count, double own, double shared, double mean, uint8_t *jittered) {
    if (count < 1 || count > 1 << 24 || !can_jitter(own, shared, mean)) return DECLINED; /* sums have 32 bits */
    const __m256i offset = _mm256_set1_epi32(to_fixed(mean * mean_grey(pixels, count)) + ONE / 2);
    __m256i blue_green[3], red[3]; /* coefficients of the three results */
    for (int i = 0; i < 3; i++) {
        uint16_t coefficients[3];
        for (int j = 0; j < 3; j++) coefficients[j] = (uint16_t)to_fixed(shared * GREY[j] + (i == j ? own : 0));
        blue_green[i] = _mm256_set1_epi32((int)(coefficients[0] | (uint32_t)coefficients[1] << 16));
        red[i] = _mm256_set1_epi32(coefficients[2]);
    }
    /* Four pixels are the lower twelve bytes of the first half and the upper twelve of the second. */
    const __m256i get_blue_green = _mm256_setr_epi8(0, -1, 1, -1, 3, -1, 4, -1, 6, -1, 7, -1, 9, -1, 10, -1, 4, -1, 5, -1, 7,
                                                    -1, 8, -1, 10, -1, 11, -1, 13, -1, 14, -1);
    const __m256i get_red = _mm256_setr_epi8(2, -1, -1, -1, 5, -1, -1, -1, 8, -1, -1, -1, 11, -1, -1, -1, 6, -1, -1, -1, 9, -1,
                                             -1, -1, 12, -1, -1, -1, 15, -1, -1, -1);
    const __m256i interleave = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11, -1, -1, -1, -1));
    for (int left = count; left > 0; left -= GROUP, pixels += 3 * GROUP, jittered += 3 * GROUP) {
        uint8_t last[3 * GROUP];
        int is_last = left < GROUP;
        const uint8_t *source = is_last ? memcpy(last, pixels, 3 * (size_t)left) : pixels;
        __m256i bytes_in = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)source)), colours[3];
        bytes_in = _mm256_inserti128_si256(bytes_in, _mm_loadu_si128((const __m128i *)(source + 8)), 1);
        __m256i bg = _mm256_shuffle_epi8(bytes_in, get_blue_green), r = _mm256_shuffle_epi8(bytes_in, get_red);
        for (int i = 0; i < 3; i++) {
            __m256i sum = _mm256_add_epi32(_mm256_madd_epi16(bg, blue_green[i]), _mm256_madd_epi16(r, red[i]));
            colours[i] = _mm256_srai_epi32(_mm256_add_epi32(sum, offset), 10);
        }
        __m256i bytes = _mm256_packs_epi32(colours[0], colours[1]);
        bytes = _mm256_shuffle_epi8(_mm256_packus_epi16(bytes, _mm256_packs_epi32(colours[2], colours[2])), interleave);
        store_8_pixels(is_last ? last : jittered, bytes);
        if (is_last) memcpy(jittered, last, 3 * (size_t)left);
    }
    return DONE;
}

END_OF_FILE

#endif
