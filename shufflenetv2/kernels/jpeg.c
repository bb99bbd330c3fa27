/* Decode a rectangle of a JPEG, at full size or at a half, a quarter or an eighth of it.
 *
 * A training crop covers half of an image on average, but libraries decode all of it. Here the entropy code is read up to the
 * crop's last row, since nothing marks where its parts begin (except restart markers: an interval without needed MCUs is
 * skipped), but only the crop's blocks are transformed, interpolated and converted to pixels. The pixels are libjpeg-turbo's,
 * bit for bit: the same integer transforms, the same triangle filter, the same rounding. Unusual files (progressive,
 * arithmetic, twelve bits, several scans, four components, rare subsamplings) and damaged files are declined. `jpeg_verify`
 * tells which of them are damaged; a library decodes the others.
 */

#include "pixels.h"
#include "simd.h"

#if defined(__x86_64__) && defined(__GNUC__)
int is_supported(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2");
}
#else
int is_supported(void) {
    return 0;
}
#endif

int header_checksum(void) {
    return HEADER_CHECKSUM;
}

#ifdef HAS_SIMD

#include "jpeg_color.h"
#include "jpeg_entropy.h"
#include "jpeg_transform.h"

/* At most as many bytes does an MCU have: six blocks of 64 codes with values, of 16 + 11 bits, and what `refill` reads beyond.
 */
enum { MCU_BYTES = 6 * 64 * 27 / 8 + 16 };

/* Bytes after the last MCU that are no reason to doubt the header; some encoders fill up with a few. */
enum { MAX_SURPLUS = 64 };

/* The MCUs in rows [top, bottom) and columns [left, right). */
typedef struct {
    int top, left, bottom, right;
} McuRange;

INLINE int is_needed(const McuRange *range, int row, int column) {
    return row >= range->top && column >= range->left && column < range->right;
}

INLINE int decode_mcu(BitReader *in, Jpeg *jpeg, int row, int column, int is_needed) {
    int16_t block[BLOCK_SIZE] __attribute__((aligned(32)));
    int is_regular = 1;
    for (int i = 0; i < jpeg->count; i++) {
        Component *c = &jpeg->components[i];
        const Huffman *dc = &jpeg->dc[c->dc], *ac = &jpeg->ac[c->ac];
        const Quantization *quantization = &jpeg->quantization[c->quantization];
        for (int b = 0; b < c->h * c->v; b++) {
            int last;
            uint32_t sum;
            if (is_needed && c->block > 1) last = decode_block(in, dc, ac, quantization, &c->last_dc, 1, block, &sum);
            else last = decode_block(in, dc, ac, quantization, &c->last_dc, 0, block, &sum);
            if (UNLIKELY(last < 0)) return DECLINED;
            if (!is_needed) continue;
            int x = column * c->h + b % c->h, y = row * c->v + b / c->h, is_flat = last == END_OF_BLOCK;
            uint8_t *to = c->samples + (y * c->block - c->top) * (ptrdiff_t)c->stride + x * c->block - c->left;
            if (c->block == 8) is_regular &= transform(block, sum, is_flat, 8, to, c->stride);
            else if (c->block == 4) is_regular &= transform(block, sum, is_flat, 4, to, c->stride);
            else if (c->block == 2) is_regular &= transform(block, sum, is_flat, 2, to, c->stride);
            else is_regular &= transform(block, sum, is_flat, 1, to, c->stride);
        }
    }
    return is_regular ? DONE : DECLINED;
}

/* Copy the entropy-coded data up to the next marker to `*to` unless that is NULL, without the zero byte that follows each 0xff
 * [F.1.2.3]. Advance `*to`; return the position of the marker or the end of the file. */
static const uint8_t *next_segment(const uint8_t *from, const uint8_t *end, uint8_t **to) {
    while (from < end) {
        const uint8_t *stop = memchr(from, 0xff, (size_t)(end - from));
        int is_stuffed = stop && end - stop >= 2 && stop[1] == 0;
        const uint8_t *until = is_stuffed ? stop + 1 : stop ? stop : end;
        if (*to) {
            memcpy(*to, from, (size_t)(until - from));
            *to += until - from;
        }
        if (!is_stuffed) return until;
        from = until + 1;
    }
    return end;
}

/* Decode the MCUs of `range` to samples. `segment` is scratch. */
static int decode_scan(Jpeg *jpeg, const McuRange *range, uint8_t *segment) {
    int columns = divide_up(jpeg->width, 8 * jpeg->h), end = range->bottom * columns;
    int mcus = columns * divide_up(jpeg->height, 8 * jpeg->v);
    int interval = jpeg->restart_interval ? jpeg->restart_interval : mcus;
    const uint8_t *from = jpeg->scan;
    for (int first = 0, restarts = 0; first < end; first += interval, restarts++) {
        if (first) {
            if (jpeg->end - from < 2 || from[0] != 0xff || from[1] != 0xd0 + (restarts - 1) % 8) return DECLINED;
            from += 2;
        }
        int mcu = first, stop = min(first + interval, end);
        while (mcu < stop && !is_needed(range, mcu / columns, mcu % columns)) mcu++;
        uint8_t *segment_end = mcu < stop ? segment : NULL;
        from = next_segment(from, jpeg->end, &segment_end);
        if (jpeg->end - from < 2 || from[1] == 0xff) return DECLINED; /* no marker follows */
        if (!segment_end) continue;

        /* The reader takes eight bytes at a time, and looks up more bits than a code has. Truncated data is noticed at the end
         * of an MCU. */
        memset(segment_end, 0, MCU_BYTES);
        BitReader in = {segment, 0, 0};
        for (int i = 0; i < jpeg->count; i++) jpeg->components[i].last_dc = 0;
        int row = first / columns, column = first % columns;
        for (mcu = first; mcu < stop; mcu++) {
            if (UNLIKELY(decode_mcu(&in, jpeg, row, column, is_needed(range, row, column)))) return DECLINED;
            if (UNLIKELY(in.next - in.count / 8 > segment_end)) return DECLINED; /* truncated */
            if (++column == columns) column = 0, row++;
        }
        /* More data than the MCUs of the image have: the size in the header may be wrong. */
        if (stop == mcus && segment_end - (in.next - in.count / 8) > MAX_SURPLUS) return DECLINED;
    }
    return end == mcus && from[1] >= 0xd0 && from[1] <= 0xd7 ? DECLINED : DONE;
}

int jpeg_decode(const uint8_t *encoded, size_t length, int scale, int top, int left, int height, int width, uint8_t *pixels,
                uint8_t *scratch, size_t scratch_size) {
    Jpeg *jpeg = (Jpeg *)scratch;
    if (scratch_size < sizeof *jpeg || jpeg_read_headers(jpeg, encoded, length)) return DECLINED;
    if (top < 0 || left < 0 || height < 1 || width < 1 || top + height > divide_up(jpeg->height, scale)
        || left + width > divide_up(jpeg->width, scale))
        return DECLINED;

    /* The MCUs of the requested pixels and of the neighbours from which their chroma is interpolated. */
    int block = 8 / scale, mcu_height = block * jpeg->v, mcu_width = block * jpeg->h;
    McuRange range = {max(top - 2, 0) / mcu_height, max(left - 2, 0) / mcu_width,
                      min(divide_up(top + height + 2, mcu_height), divide_up(jpeg->height, 8 * jpeg->v)),
                      min(divide_up(left + width + 2, mcu_width), divide_up(jpeg->width, 8 * jpeg->h))};
    size_t used = sizeof *jpeg;
    for (int i = 0; i < jpeg->count; i++) {
        Component *c = &jpeg->components[i];
        c->block = block;
        if (i > 0 && jpeg->h == jpeg->v && jpeg->h == 2 && block < 8) c->block *= 2;
        c->width = divide_up(jpeg->width * c->h * c->block, jpeg->h * 8);
        c->height = divide_up(jpeg->height * c->v * c->block, jpeg->v * 8);
        c->top = range.top * c->v * c->block, c->left = range.left * c->h * c->block;
        c->stride = (range.right - range.left) * c->h * c->block;
        c->samples = scratch + used;
        used += (size_t)(range.bottom - range.top) * (size_t)(c->v * c->block) * (size_t)c->stride;
        if (i > 0 && c->width <= 2) return DECLINED; /* libjpeg does not interpolate components this narrow */
    }
    size_t rows = (used + 63) / 64 * 64, segment = rows + 3 * ((size_t)width + 128);
    if (segment + (size_t)(jpeg->end - jpeg->scan) + MCU_BYTES > scratch_size) return DECLINED;
    if (decode_scan(jpeg, &range, scratch + segment)) return DECLINED;
    write_pixels(jpeg, top, left, height, width, block > 1, scratch + rows, pixels);
    return DONE;
}

END_OF_FILE

#endif
