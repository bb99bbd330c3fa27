/* Bilinear resizing of three-coloured bytes, flipped on the way: OpenCV's pixels, bit for bit, in half the time.
 *
 * As in OpenCV, a weight is a multiple of 1/2048 and a sample is rounded twice: down to 1/128 between the two columns it
 * lies between, and to a whole number between the rows. What is saved is the detour by 32 bits: the products of a pixel's
 * three colours are taken and added by one instruction, and kept in sixteen bits, which is all the second step looks at.
 *
 * A row of samples between columns is kept as groups of eight pixels, four lanes (blue, green, red, nothing) each, in the
 * order in which packing them to bytes puts them right: 0, 1, 4, 5, 2, 3, 6, 7. Compiled where AVX2 is known; `resize.py` calls it.
 */

#include "pixels.h"

#ifdef IS_COMPILED

#include <math.h>

enum { LANES = 4, GROUP = 8, BEYOND = 16 }; /* bytes that are read, and not used, beyond the beginning of a row's last pixel */

static const int PLACE[GROUP] = {0, 2, 4, 6, 1, 3, 5, 7}; /* of each pixel of a group among its loads: 0, 4, 1, 5, 2, 6, 3, 7 */

/* The pixels at `at` (in bytes) and after it, for each pixel of a group, and their weights for each lane. */
typedef struct {
    int32_t at[GROUP];
    int16_t weights[GROUP][2 * LANES];
} Columns;

/* Which two of `count` samples, the first of which is returned, the i-th of `length` lies between, and their weights. */
INLINE int between(int i, int length, int count, int16_t weights[2]) {
    double scale = 1 / ((double)length / count);
    float x = (float)((i + 0.5) * scale - 0.5), first = floorf(x);
    weights[0] = (int16_t)lrintf((1 - (x - first)) * 2048);
    weights[1] = (int16_t)lrintf((x - first) * 2048);
    return (int)first;
}

static void find_columns(int width, int new_width, int is_mirrored, Columns *columns) {
    for (int x = 0; x < new_width || x % GROUP; x++) {
        int16_t weights[2];
        int column = least(x, new_width - 1), place = PLACE[x % GROUP];
        int first = between(is_mirrored ? new_width - 1 - column : column, new_width, width, weights);
        if (first < 0 || first >= width - 1) first = first < 0 ? 0 : width - 1, weights[0] = 2048, weights[1] = 0;
        columns[x / GROUP].at[place] = 3 * first;
        for (int i = 0; i < 2 * LANES; i++) columns[x / GROUP].weights[place][i] = weights[i % 2];
    }
}

static void resize_row(const uint8_t *row, const Columns *columns, int groups, int16_t *to) {
    const __m256i pairs = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
    for (; groups; groups--, columns++, to += GROUP * LANES) {
        __m256i sums[GROUP / 2];
        for (int i = 0; i < GROUP / 2; i++) {
            __m128i one = _mm_loadu_si128((const __m128i *)(row + columns->at[2 * i]));
            __m128i other = _mm_loadu_si128((const __m128i *)(row + columns->at[2 * i + 1]));
            __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(one), other, 1);
            __m256i weights = _mm256_loadu_si256((const __m256i *)columns->weights[2 * i]);
            sums[i] = _mm256_srai_epi32(_mm256_madd_epi16(_mm256_shuffle_epi8(both, pairs), weights), 4);
        }
        _mm256_storeu_si256((__m256i *)to, _mm256_packs_epi32(sums[0], sums[1]));
        _mm256_storeu_si256((__m256i *)to + 1, _mm256_packs_epi32(sums[2], sums[3]));
    }
}

/* Four pixels of a group. */
INLINE __m256i blend(const int16_t *a, const int16_t *b, __m256i weight_a, __m256i weight_b) {
    __m256i part_a = _mm256_mulhi_epi16(_mm256_loadu_si256((const __m256i *)a), weight_a);
    __m256i part_b = _mm256_mulhi_epi16(_mm256_loadu_si256((const __m256i *)b), weight_b);
    return _mm256_srai_epi16(_mm256_add_epi16(_mm256_add_epi16(part_a, part_b), _mm256_set1_epi16(2)), 2);
}

static void blend_rows(const int16_t *a, const int16_t *b, const int16_t weights[2], int width, uint8_t *to) {
    const __m256i weight_a = _mm256_set1_epi16(weights[0]), weight_b = _mm256_set1_epi16(weights[1]);
    const __m256i three = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1));
    for (int left = width; left > 0; left -= GROUP, a += GROUP * LANES, b += GROUP * LANES, to += 3 * GROUP) {
        __m256i low = blend(a, b, weight_a, weight_b), high = blend(a + 16, b + 16, weight_a, weight_b);
        __m256i bytes = _mm256_shuffle_epi8(_mm256_packus_epi16(low, high), three);
        if (left >= GROUP) {
            store_8_pixels(to, bytes);
        } else { /* nothing is written beyond the row: what follows is another thread's */
            uint8_t last[3 * GROUP];
            store_8_pixels(last, bytes);
            memcpy(to, last, 3 * (size_t)left);
        }
    }
}

/* from: bytes (height, width, 3), rows `stride` bytes apart.
 * to: bytes (new_height, new_width, 3).
 * memory: scratch of `size` bytes; 40 * (new_width + 8) + 3 * width + 16 are enough.
 */
int resize_bilinear(const uint8_t *from, ptrdiff_t stride, int height, int width, uint8_t *to, int new_height, int new_width,
                    int is_mirrored, int is_upside_down, uint8_t *memory, size_t size) {
    size_t groups = ((size_t)new_width + GROUP - 1) / GROUP, row_size = groups * GROUP * LANES;
    if (size < groups * sizeof(Columns) + 2 * row_size * sizeof(int16_t) + 3 * (size_t)width + BEYOND) return DECLINED;
    Columns *columns = (Columns *)memory;
    int16_t *rows[2] = {(int16_t *)(columns + groups), (int16_t *)(columns + groups) + row_size};
    uint8_t *last = (uint8_t *)(rows[1] + row_size);
    int held[2] = {-1, -1}; /* which row each of `rows` is made of: even ones are in the first */
    find_columns(width, new_width, is_mirrored, columns);
    for (int y = 0; y < new_height; y++) {
        int16_t weights[2];
        int first = between(y, new_height, height, weights), near[2];
        for (int i = 0; i < 2; i++) {
            int row = most(0, least(first + i, height - 1));
            near[i] = row % 2;
            if (held[row % 2] == row) continue;
            const uint8_t *pixels = from + row * stride;
            if ((height - 1 - row) * stride < BEYOND) pixels = memcpy(last, pixels, 3 * (size_t)width);
            resize_row(pixels, columns, (int)groups, rows[row % 2]);
            held[row % 2] = row;
        }
        ptrdiff_t target = is_upside_down ? new_height - 1 - y : y;
        blend_rows(rows[near[0]], rows[near[1]], weights, new_width, to + target * 3 * new_width);
    }
    return DONE;
}

END_OF_FILE

#endif
