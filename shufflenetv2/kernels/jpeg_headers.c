/* Parse the segments of a JPEG file that precede the entropy-coded data: tables, frame and scan. */

#include "jpeg.h"
#include "pixels.h"

#ifdef HAS_SIMD

INLINE int read_u16(const uint8_t *at) {
    return at[0] << 8 | at[1];
}

static const uint8_t ZIGZAG[64] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48,
    41, 34, 27, 20, 13, 6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23,
    30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
};

static int read_quantization(Jpeg *jpeg, const uint8_t *at, const uint8_t *end) {
    while (at < end) {
        int wide = *at >> 4, id = *at & 15;
        at++;
        if (wide > 1 || id > 3 || end - at < 64 << wide) return DECLINED;
        Quantization *table = &jpeg->quantization[id];
        memset(table->step, 0, sizeof table->step);
        memset(table->index, UNUSED_INDEX, sizeof table->index);
        memcpy(table->index, ZIGZAG, sizeof ZIGZAG);
        for (int k = 0; k < 64; k++, at += 1 + wide) {
            int step = wide ? read_u16(at) : *at;
            if (step > INT16_MAX) return DECLINED;
            table->step[k] = (int16_t)step;
        }
        table->is_defined = 1;
    }
    return DONE;
}

/* Codes are numbered by length, then in the order of their symbols. [C.2] */
static int read_huffman(Jpeg *jpeg, const uint8_t *at, const uint8_t *end) {
    while (at < end) {
        int is_ac = *at >> 4, id = *at & 15, total = 0;
        if (is_ac > 1 || id > 3 || end - at < 17) return DECLINED;
        const uint8_t *counts = at, *symbols = at + 17;
        for (int length = 1; length <= 16; length++) total += counts[length];
        if (total > 256 || end - symbols < total) return DECLINED;
        Huffman *table = is_ac ? &jpeg->ac[id] : &jpeg->dc[id];
        memset(table->lookup, 0xff, sizeof table->lookup);
        memset(table->symbols, 0, sizeof table->symbols);
        memcpy(table->symbols, symbols, total);
        int code = 0, index = 0;
        for (int length = 1; length <= 16; length++, code <<= 1) {
            table->offset[length] = index - code;
            for (int i = 0; i < counts[length]; i++, code++, index++) {
                int advance = symbol_advance(symbols[index], is_ac), size = symbols[index] & 15, rest = LOOKAHEAD_BITS - length;
                if (!advance || code >= 1 << length) return DECLINED;
                if (rest < 0) continue;
                uint32_t *entry = table->lookup + ((size_t)code << rest);
                for (int bits = 0; bits < 1 << rest; bits++)
                    *entry++ = (uint32_t)advance << ADVANCE_SHIFT
                               | (size > rest ? (uint32_t)length | VALUE_FOLLOWS | (uint32_t)size << VALUE_SHIFT
                                              : (uint32_t)(length + size)
                                                    | (uint32_t)extend_sign(bits >> (rest - size), size) << VALUE_SHIFT);
            }
            table->limit[length] = code << (16 - length);
        }
        table->is_defined = 1;
        at = symbols + total;
    }
    return DONE;
}

static int read_frame(Jpeg *jpeg, const uint8_t *at, const uint8_t *end) {
    if (jpeg->count || end - at < 6) return DECLINED;
    jpeg->height = read_u16(at + 1), jpeg->width = read_u16(at + 3), jpeg->count = at[5];
    if (at[0] != 8 || !jpeg->height || !jpeg->width || (jpeg->count != 1 && jpeg->count != 3)) return DECLINED;
    if (end - at != 6 + 3 * jpeg->count) return DECLINED;
    for (int i = 0; i < jpeg->count; i++) {
        Component *c = &jpeg->components[i];
        const uint8_t *spec = at + 6 + 3 * i;
        c->id = spec[0], c->h = spec[1] >> 4, c->v = spec[1] & 15, c->quantization = spec[2];
        if (jpeg->count == 1 && c->h >= 1 && c->h <= 4 && c->v >= 1 && c->v <= 4)
            c->h = c->v = 1; /* one component alone has no subsampling [A.2.2] */
        int limit = i == 0 ? 2 : 1;
        if (c->h < 1 || c->h > limit || c->v < 1 || c->v > limit || c->quantization > 3) return DECLINED;
    }
    jpeg->h = jpeg->components[0].h, jpeg->v = jpeg->components[0].v;
    return DONE;
}

static int read_scan(Jpeg *jpeg, const uint8_t *at, const uint8_t *end) {
    if (!jpeg->count || end - at != 4 + 2 * jpeg->count || at[0] != jpeg->count) return DECLINED;
    for (int i = 0; i < jpeg->count; i++) {
        Component *c = &jpeg->components[i];
        c->dc = at[2 + 2 * i] >> 4, c->ac = at[2 + 2 * i] & 15;
        if (at[1 + 2 * i] != c->id || c->dc > 3 || c->ac > 3) return DECLINED;
        if (!jpeg->dc[c->dc].is_defined || !jpeg->ac[c->ac].is_defined || !jpeg->quantization[c->quantization].is_defined)
            return DECLINED;
    }
    jpeg->scan = end;
    return end[-3] == 0 && end[-2] == 63 && end[-1] == 0 ? DONE : DECLINED;
}

int jpeg_read_headers(Jpeg *jpeg, const uint8_t *at, size_t length) {
    jpeg->count = jpeg->restart_interval = jpeg->has_jfif = jpeg->adobe_transform = 0;
    for (int i = 0; i < 4; i++) jpeg->dc[i].is_defined = jpeg->ac[i].is_defined = jpeg->quantization[i].is_defined = 0;
    jpeg->scan = NULL, jpeg->end = at + length;
    if (length < 4 || read_u16(at) != 0xffd8) return DECLINED;
    at += 2;
    while (!jpeg->scan) {
        if (jpeg->end - at < 4 || at[0] != 0xff) return DECLINED;
        int marker = at[1], result = DONE;
        const uint8_t *body = at + 4, *next = at + 2 + read_u16(at + 2);
        if (marker == 0xff) {
            at++;
            continue;
        }
        if (next < body || next > jpeg->end) return DECLINED;
        if (marker == 0xc0 || marker == 0xc1) result = read_frame(jpeg, body, next);
        else if (marker == 0xc4) result = read_huffman(jpeg, body, next);
        else if (marker == 0xdb) result = read_quantization(jpeg, body, next);
        else if (marker == 0xda) result = read_scan(jpeg, body, next);
        else if (marker == 0xdd && next - body == 2) jpeg->restart_interval = read_u16(body);
        else if (marker == 0xe0 && next - body >= 14 && !memcmp(body, "JFIF", 5)) jpeg->has_jfif = 1;
        else if (marker == 0xee && next - body >= 12 && !memcmp(body, "Adobe", 5)) jpeg->adobe_transform = 1 + body[11];
        else if (marker < 0xe0 || (marker > 0xef && marker != 0xfe))
            return DECLINED; /* neither application data nor a comment */
        if (result == DECLINED) return DECLINED;
        at = next;
    }
    if (jpeg->count == 1 || jpeg->has_jfif) return DONE;
    /* Three components are YCbCr or RGB. Like libjpeg, infer which from the Adobe segment or the ids. */
    const Component *c = jpeg->components;
    int is_ycbcr = jpeg->adobe_transform ? jpeg->adobe_transform == 1 + 1 : c[0].id == 1 && c[1].id == 2 && c[2].id == 3;
    return is_ycbcr ? DONE : DECLINED;
}

END_OF_FILE

#endif
