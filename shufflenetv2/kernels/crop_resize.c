/* Bilinear resizing with flips, and the whole way from a JPEG to a training image: OpenCV's pixels, bit for bit.
 *
 * As in OpenCV, a weight is a multiple of 1/2048, and a sample is rounded twice: down to 1/128 between two columns, and to an
 * integer between two rows. OpenCV computes in 32 bits; here one instruction multiplies and adds the three colours of a pixel,
 * and the sums are kept in 16 bits, which is all that the second step uses.
 *
 * A row of samples between columns is stored in groups of eight pixels with four lanes each (blue, green, red, unused), in the
 * order in which packing them to bytes restores the order of the pixels: 0, 1, 4, 5, 2, 3, 6, 7.
 */

#include "pixels.h"
#include "simd.h"

#ifdef HAS_SIMD

enum { LANES = 4, GROUP = 8 };
enum { OVERREAD = 16 }; /* bytes that are read from the beginning of a row's last pixel, most of them unused */

/* Position of each pixel of a group among its loads, which are in the order 0, 4, 1, 5, 2, 6, 3, 7. */
static const int LOAD_POSITION[GROUP] = {0, 2, 4, 6, 1, 3, 5, 7};

/* For each pixel of a group: the byte offset of the left one of its two source pixels, and the weights of both for each lane.
 */
typedef struct {
    int32_t offset[GROUP];
    int16_t weights[GROUP][2 * LANES];
} Columns;

/* Return the first of the two of `count` samples between which the i-th of `length` samples lies, and set the weights of both.
 */
INLINE int find_neighbours(int i, int length, int count, int16_t weights[2]) {
    double scale = 1 / ((double)length / count);
    float x = (float)((i + 0.5) * scale - 0.5), first = floorf(x);
    weights[0] = (int16_t)lrintf((1 - (x - first)) * 2048);
    weights[1] = (int16_t)lrintf((x - first) * 2048);
    return (int)first;
}

/* Samples [first, first + count) of `length` samples are given, of which samples [new_first, new_first + new_count) of
 * `new_length` samples are computed, in reverse order if `flip`. */
typedef struct {
    int length, first, count, new_length, new_first, new_count, flip;
} Axis;

/* Find the source columns of each column of the result. Return DECLINED if one of them is not given. */
static int find_columns(Axis axis, Columns *columns) {
    for (int x = 0; x < axis.new_count || x % GROUP; x++) {
        int16_t weights[2];
        int column = min(x, axis.new_count - 1), position = LOAD_POSITION[x % GROUP];
        if (axis.flip) column = axis.new_count - 1 - column;
        int first = find_neighbours(axis.new_first + column, axis.new_length, axis.length, weights);
        if (first < 0 || first >= axis.length - 1) first = first < 0 ? 0 : axis.length - 1, weights[0] = 2048, weights[1] = 0;
        first -= axis.first;
        if (first < 0 || first + (weights[1] != 0) >= axis.count) return DECLINED;
        columns[x / GROUP].offset[position] = 3 * first;
        for (int i = 0; i < 2 * LANES; i++) columns[x / GROUP].weights[position][i] = weights[i % 2];
    }
    return DONE;
}

/* Interpolate a row between columns. */
static void resize_row(const uint8_t *row, const Columns *columns, int groups, int16_t *to) {
    const __m256i pairs = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
    for (; groups; groups--, columns++, to += GROUP * LANES) {
        __m256i sums[GROUP / 2];
        for (int i = 0; i < GROUP / 2; i++) {
            __m128i even = _mm_loadu_si128((const __m128i *)(row + columns->offset[2 * i]));
            __m128i odd = _mm_loadu_si128((const __m128i *)(row + columns->offset[2 * i + 1]));
            __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(even), odd, 1);
            __m256i weights = _mm256_loadu_si256((const __m256i *)columns->weights[2 * i]);
            sums[i] = _mm256_srai_epi32(_mm256_madd_epi16(_mm256_shuffle_epi8(both, pairs), weights), 4);
        }
        _mm256_storeu_si256((__m256i *)to, _mm256_packs_epi32(sums[0], sums[1]));
        _mm256_storeu_si256((__m256i *)to + 1, _mm256_packs_epi32(sums[2], sums[3]));
    }
}

/* Interpolate four pixels of a group between rows. */
INLINE __m256i blend(const int16_t *a, const int16_t *b, __m256i weight_a, __m256i weight_b) {
    __m256i weighted_a = _mm256_mulhi_epi16(_mm256_loadu_si256((const __m256i *)a), weight_a);
    __m256i weighted_b = _mm256_mulhi_epi16(_mm256_loadu_si256((const __m256i *)b), weight_b);
    return _mm256_srai_epi16(_mm256_add_epi16(_mm256_add_epi16(weighted_a, weighted_b), _mm256_set1_epi16(2)), 2);
}

/* Interpolate a row of the result between two rows. */
static void blend_rows(const int16_t *a, const int16_t *b, const int16_t weights[2], int width, uint8_t *to) {
    const __m256i weight_a = _mm256_set1_epi16(weights[0]), weight_b = _mm256_set1_epi16(weights[1]);
    const __m256i three = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1));
    for (int left = width; left > 0; left -= GROUP, a += GROUP * LANES, b += GROUP * LANES, to += 3 * GROUP) {
        __m256i low = blend(a, b, weight_a, weight_b), high = blend(a + 16, b + 16, weight_a, weight_b);
        __m256i bytes = _mm256_shuffle_epi8(_mm256_packus_epi16(low, high), three);
        if (left >= GROUP) {
            store_8_pixels(to, bytes);
        } else { /* another thread may write the bytes after the row */
            uint8_t last[3 * GROUP];
            store_8_pixels(last, bytes);
            memcpy(to, last, 3 * (size_t)left);
        }
    }
}

static int resize_axes(const uint8_t *pixels, ptrdiff_t stride, Axis vertical, Axis horizontal, uint8_t *resized,
                       uint8_t *scratch, size_t scratch_size) {
    size_t groups = ((size_t)horizontal.new_count + GROUP - 1) / GROUP, row_size = groups * GROUP * LANES;
    size_t width = (size_t)horizontal.count, new_width = (size_t)horizontal.new_count;
    if (scratch_size < groups * sizeof(Columns) + 2 * row_size * sizeof(int16_t) + 3 * width + OVERREAD) return DECLINED;
    Columns *columns = (Columns *)scratch;
    int16_t *rows[2] = {(int16_t *)(columns + groups), (int16_t *)(columns + groups) + row_size};
    uint8_t *last = (uint8_t *)(rows[1] + row_size);
    int source_row[2] = {-1, -1}; /* of each of `rows`; even source rows are in the first, odd ones in the second */
    if (find_columns(horizontal, columns)) return DECLINED;
    for (int y = 0; y < vertical.new_count; y++) {
        int16_t weights[2];
        int first = find_neighbours(vertical.new_first + y, vertical.new_length, vertical.length, weights), parity[2];
        for (int i = 0; i < 2; i++) {
            int row = max(0, min(first + i, vertical.length - 1)) - vertical.first;
            if (row < 0 || row >= vertical.count) return DECLINED;
            parity[i] = row % 2;
            if (source_row[row % 2] == row) continue;
            const uint8_t *source = pixels + row * stride;
            if ((vertical.count - 1 - row) * stride < OVERREAD) source = memcpy(last, source, 3 * width);
            resize_row(source, columns, (int)groups, rows[row % 2]);
            source_row[row % 2] = row;
        }
        size_t target = (size_t)(vertical.flip ? vertical.new_count - 1 - y : y);
        blend_rows(rows[parity[0]], rows[parity[1]], weights, (int)new_width, resized + target * 3 * new_width);
    }
    return DONE;
}

int resize_bilinear(const uint8_t *pixels, ptrdiff_t stride, int height, int width, uint8_t *resized, int new_height,
                    int new_width, int hflip, int vflip, uint8_t *scratch, size_t scratch_size) {
    Axis vertical = {height, 0, height, new_height, 0, new_height, vflip};
    Axis horizontal = {width, 0, width, new_width, 0, new_width, hflip};
    return resize_axes(pixels, stride, vertical, horizontal, resized, scratch, scratch_size);
}

int resize_bilinear_part(const uint8_t *pixels, ptrdiff_t stride, int height, int width, int given_top, int given_left,
                         int given_height, int given_width, uint8_t *part, int new_height, int new_width, int top, int left,
                         int part_height, int part_width, uint8_t *scratch, size_t scratch_size) {
    Axis vertical = {height, given_top, given_height, new_height, top, part_height, 0};
    Axis horizontal = {width, given_left, given_width, new_width, left, part_width, 0};
    return resize_axes(pixels, stride, vertical, horizontal, part, scratch, scratch_size);
}

int jpeg_crop_resize(const uint8_t *encoded, size_t length, int scale, int top, int left, int height, int width,
                     uint8_t *resized, int new_height, int new_width, int hflip, int vflip, double own, double shared,
                     double mean, uint8_t *scratch, size_t scratch_size) {
    int has_jitter = own != 1 || shared != 0 || mean != 0;
    if (height < 1 || width < 1 || (has_jitter && !can_jitter(own, shared, mean))) return DECLINED;
    size_t used = ((size_t)height * (size_t)width * 3 + 64 + 63) / 64 * 64; /* decoded pixels */
    if (scratch_size < used) return DECLINED;
    uint8_t *pixels = scratch;
    scratch += used, scratch_size -= used;
    if (jpeg_decode(encoded, length, scale, top, left, height, width, pixels, scratch, scratch_size)) return DECLINED;
    if (resize_bilinear(pixels, 3 * (ptrdiff_t)width, height, width, resized, new_height, new_width, hflip, vflip, scratch,
                        scratch_size))
        return DECLINED;
    return has_jitter ? jitter(resized, new_height * new_width, own, shared, mean, resized) : DONE;
}

END_OF_FILE

#endif
