/* A part of a JPEG, whole or at a half, a quarter or an eighth of its size, as pixels.
 *
 * A training crop covers half of an image on average, but libraries decode all of it. Here the entropy code is read
 * up to the crop's last row, since nothing says where its parts begin (unless there are restart markers: what lies
 * between two of them and is not needed is skipped), but only the crop's blocks are transformed, interpolated and
 * coloured. The pixels are libjpeg-turbo's, bit for bit: the same integer transforms, the same triangle filter,
 * the same rounding. Whatever is unusual (progressive, arithmetic, twelve bits, several scans, four colours, rare
 * subsamplings) or damaged is declined: a library decodes it.
 *
 * The speed is mostly that of `decode_block`: one look at the next bits yields a run of zeros, a coefficient and how many
 * bits both took, so that a symbol costs a load and a shift.
 *
 * Numbers in brackets are sections and figures of ITU-T T.81. A component is one of luma, blue and red; a sample is one of its
 * values; an MCU is the blocks of 8 x 8 samples of all components that belong together. Compiled where AVX2 is known;
 * `jpeg.py` calls it.
 */

#if defined(__x86_64__) && defined(__GNUC__)
int is_supported(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2"); }
#else
int is_supported(void) { return 0; }
#endif

#include "pixels.h"

#ifdef IS_COMPILED

INLINE int divide_up(int a, int b) { return (a + b - 1) / b; }
INLINE int u16(const uint8_t *at) { return at[0] << 8 | at[1]; }

/* ---- What the headers say ---- */

enum { LOOK = 11, LOOKS = 1 << LOOK }; /* bits, and what they may be */

/* How far an end of block goes: beyond any coefficient. Places beyond the block's 64 are there to be written, not read. */
enum { END_OF_BLOCK = 128, NO_PLACE = 64, BLOCK = 80 };

/* An entry of `Huffman.look`, from the lowest bits: the length of code and value in bits (6), a flag where the value is not
 * among the bits looked at (1), one where the code is not (1), how far to go in the block (8), and the value, or its length (16). */
enum { LENGTH = 0x3f, NO_VALUE = 0x40, NO_CODE = 0x80, NEXT = 8, VALUE = 16 };

typedef struct {
    uint32_t look[LOOKS];  /* by the next LOOK bits */
    int32_t beyond[17];    /* the first code of 16 bits that does not begin with a code of this length or a shorter one */
    int32_t first[17];     /* what to add to a code of this length for its symbol's index */
    uint8_t symbols[256];
    int is_there;
} Huffman;

typedef struct {
    int16_t step[256]; /* of the k-th coefficient, in the order of the file [A.6]; more than 64, for the ends of blocks */
    uint8_t place[256];
    int is_there;
} Quantization;

typedef struct {
    int id, h, v, quantization, dc, ac;
    int block;         /* samples of a block's side in the result: 8 / scale, or twice that if it spares interpolation */
    int width, height; /* in samples of the result */
    uint8_t *samples;  /* of the MCUs that are needed; the first is at (top, left) */
    int stride, top, left;
    int last_dc;
} Component;

typedef struct {
    int width, height, count, h, v; /* in pixels; of components; of luma's blocks in an MCU */
    int restart_interval;           /* MCUs between restart markers, 0 for none */
    int saw_jfif, adobe;            /* whether; 1 + what is said of the colours, 0 for nothing */
    Component components[3];
    Quantization quantization[4];
    Huffman dc[4], ac[4];
    const uint8_t *scan, *end; /* of the entropy code; of the file */
} Jpeg;

static const uint8_t ZIGZAG[64] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6,  7,  14, 21, 28,
    35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
};

static int read_quantization(Jpeg *jpeg, const uint8_t *at, const uint8_t *end) {
    while (at < end) {
        int wide = *at >> 4, id = *at & 15;
        at++;
        if (wide > 1 || id > 3 || end - at < 64 << wide) return DECLINED;
        Quantization *table = &jpeg->quantization[id];
        memset(table->step, 0, sizeof table->step);
        memset(table->place, NO_PLACE, sizeof table->place);
        memcpy(table->place, ZIGZAG, sizeof ZIGZAG);
        for (int k = 0; k < 64; k++, at += 1 + wide) {
            int step = wide ? u16(at) : *at;
            if (step > INT16_MAX) return DECLINED;
            table->step[k] = (int16_t)step;
        }
        table->is_there = 1;
    }
    return DONE;
}

/* The value that `length` bits stand for. [F.12] */
INLINE int value_of(uint32_t bits, int length) {
    return bits < 1u << length >> 1 ? (int)bits - (1 << length) + 1 : (int)bits;
}

/* How far a symbol goes in its block, or 0 if there is no such symbol. Differences of the first coefficient go nowhere. [F.1.2] */
INLINE int advance_of(int symbol, int is_ac) {
    int run = symbol >> 4, length = symbol & 15;
    if (!is_ac) return symbol <= 11;
    if (length == 0) return run == 0 ? END_OF_BLOCK : run == 15 ? 16 : 0;
    return length <= 10 ? run + 1 : 0;
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
        memset(table->look, 0xff, sizeof table->look);
        memset(table->symbols, 0, sizeof table->symbols);
        memcpy(table->symbols, symbols, total);
        int code = 0, index = 0;
        for (int length = 1; length <= 16; length++, code <<= 1) {
            table->first[length] = index - code;
            for (int i = 0; i < counts[length]; i++, code++, index++) {
                int advance = advance_of(symbols[index], is_ac), size = symbols[index] & 15, rest = LOOK - length;
                if (!advance || code >= 1 << length) return DECLINED;
                if (rest < 0) continue;
                uint32_t *entry = table->look + ((size_t)code << rest);
                for (int bits = 0; bits < 1 << rest; bits++)
                    *entry++ = (uint32_t)advance << NEXT
                               | (size > rest ? (uint32_t)length | NO_VALUE | (uint32_t)size << VALUE
                                              : (uint32_t)(length + size) | (uint32_t)value_of(bits >> (rest - size), size) << VALUE);
            }
            table->beyond[length] = code << (16 - length);
        }
        table->is_there = 1;
        at = symbols + total;
    }
    return DONE;
}

static int read_frame(Jpeg *jpeg, const uint8_t *at, const uint8_t *end) {
    if (jpeg->count || end - at < 6) return DECLINED;
    jpeg->height = u16(at + 1), jpeg->width = u16(at + 3), jpeg->count = at[5];
    if (at[0] != 8 || !jpeg->height || !jpeg->width || (jpeg->count != 1 && jpeg->count != 3)) return DECLINED;
    if (end - at != 6 + 3 * jpeg->count) return DECLINED;
    for (int i = 0; i < jpeg->count; i++) {
        Component *c = &jpeg->components[i];
        const uint8_t *spec = at + 6 + 3 * i;
        c->id = spec[0], c->h = spec[1] >> 4, c->v = spec[1] & 15, c->quantization = spec[2];
        if (jpeg->count == 1) c->h = c->v = 1; /* one component alone has no subsampling [A.2.2] */
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
        if (!jpeg->dc[c->dc].is_there || !jpeg->ac[c->ac].is_there || !jpeg->quantization[c->quantization].is_there) return DECLINED;
    }
    jpeg->scan = end;
    return end[-3] == 0 && end[-2] == 63 && end[-1] == 0 ? DONE : DECLINED;
}

static int read_headers(Jpeg *jpeg, const uint8_t *at, size_t length) {
    jpeg->count = jpeg->restart_interval = jpeg->saw_jfif = jpeg->adobe = 0;
    for (int i = 0; i < 4; i++) jpeg->dc[i].is_there = jpeg->ac[i].is_there = jpeg->quantization[i].is_there = 0;
    jpeg->scan = NULL, jpeg->end = at + length;
    if (length < 4 || u16(at) != 0xffd8) return DECLINED;
    at += 2;
    while (!jpeg->scan) {
        if (jpeg->end - at < 4 || at[0] != 0xff) return DECLINED;
        int marker = at[1], result = DONE;
        const uint8_t *body = at + 4, *next = at + 2 + u16(at + 2);
        if (marker == 0xff) {
            at++;
            continue;
        }
        if (next < body || next > jpeg->end) return DECLINED;
        if (marker == 0xc0 || marker == 0xc1) result = read_frame(jpeg, body, next);
        else if (marker == 0xc4) result = read_huffman(jpeg, body, next);
        else if (marker == 0xdb) result = read_quantization(jpeg, body, next);
        else if (marker == 0xda) result = read_scan(jpeg, body, next);
        else if (marker == 0xdd && next - body == 2) jpeg->restart_interval = u16(body);
        else if (marker == 0xe0 && next - body >= 14 && !memcmp(body, "JFIF", 5)) jpeg->saw_jfif = 1;
        else if (marker == 0xee && next - body >= 12 && !memcmp(body, "Adobe", 5)) jpeg->adobe = 1 + body[11];
        else if (marker < 0xe0) return DECLINED;
        if (result == DECLINED) return DECLINED;
        at = next;
    }
    if (jpeg->count == 1 || jpeg->saw_jfif) return DONE;
    const Component *c = jpeg->components; /* three colours: which ones, is what libjpeg guesses */
    int are_luma_blue_red = jpeg->adobe ? jpeg->adobe == 1 + 1 : c[0].id == 1 && c[1].id == 2 && c[2].id == 3;
    return are_luma_blue_red ? DONE : DECLINED;
}

/* ---- From the entropy code to coefficients ---- */

/* The bits to come, the next one highest; `count` of them are read, and at least 56 after `refill`. */
typedef struct {
    const uint8_t *next;
    uint64_t bits;
    int count;
} Bits;

INLINE void refill(Bits *in) {
    uint64_t more;
    memcpy(&more, in->next, sizeof more);
    in->bits |= __builtin_bswap64(more) >> in->count;
    in->next += (63 - in->count) >> 3;
    in->count |= 56;
}

INLINE uint32_t peek(const Bits *in, int length) { return (uint32_t)(in->bits >> 1 >> (63 - length)); }

INLINE void consume(Bits *in, uint32_t length) {
    in->bits <<= length & LENGTH;
    in->count -= (int)(length & LENGTH);
}

/* What `look` does not hold: at most 16 bits of code and 11 of value. How far to go, or 0 where there is no such code. */
INLINE int read_long(Bits *in, const Huffman *table, uint32_t entry, int is_ac, int *value) {
    int size = (int)(entry >> VALUE), advance = (int)(entry >> NEXT & 0xff);
    if (entry & NO_CODE) {
        int code = (int)peek(in, 16), length = LOOK + 1;
        while (length <= 16 && code >= table->beyond[length]) length++;
        if (length > 16) return 0;
        int symbol = table->symbols[table->first[length] + (code >> (16 - length))];
        size = symbol & 15, advance = advance_of(symbol, is_ac);
        consume(in, (uint32_t)length);
    } else
        consume(in, entry);
    *value = value_of(peek(in, size), size);
    consume(in, (uint32_t)size);
    return advance;
}

/* The coefficients of a block, multiplied by their steps; only the first one unless `with_ac`. Returns END_OF_BLOCK if all others
 * are zero, another number if they may not be, and -1 for damage. [F.2.2] */
INLINE int decode_block(Bits *in, const Huffman *dc, const Huffman *ac, const Quantization *by, int *last_dc, int with_ac,
                        int16_t block[BLOCK]) {
    refill(in);
    uint32_t entry = dc->look[peek(in, LOOK)];
    int difference = (int32_t)entry >> VALUE;
    if (UNLIKELY(entry & (NO_VALUE | NO_CODE))) {
        if (!read_long(in, dc, entry, 0, &difference)) return -1;
    } else
        consume(in, entry);
    if (with_ac)
        for (int i = 0; i < 4; i++) _mm256_store_si256((__m256i *)block + i, _mm256_setzero_si256());
    *last_dc += difference;
    block[0] = (int16_t)(*last_dc * by->step[0]);

    int k = 0; /* of the last coefficient */
    do {
        refill(in);
        /* 56 bits are five looks. What an end of block seems to write has no place in the block. */
#pragma GCC unroll 5
        for (int i = 0; i < 56 / LOOK; i++) {
            entry = ac->look[peek(in, LOOK)];
            int value = (int32_t)entry >> VALUE;
            if (UNLIKELY(entry & (NO_VALUE | NO_CODE))) {
                refill(in);
                int advance = read_long(in, ac, entry, 1, &value);
                if (!advance) return -1;
                k += advance;
                if (with_ac) block[by->place[k]] = (int16_t)(value * by->step[k]);
                break;
            }
            consume(in, entry);
            k += entry >> NEXT & 0xff;
            if (with_ac) block[by->place[k]] = (int16_t)(value * by->step[k]);
            if (k >= 63) break;
        }
    } while (k < 63);
    return UNLIKELY(k > 63 && k < END_OF_BLOCK) ? -1 : k;
}

/* ---- From coefficients to samples ---- */

typedef int32_t Lanes __attribute__((vector_size(32)));

/* Inverse cosine transforms of eight columns at once, in fixed point of 13 bits, divided by 2 ^ shift: eight results
 * [Loeffler, Ligtenberg, Moschytz: Practical fast 1-D DCT algorithms with 11 multiplications, 1989], four, or two. */
INLINE void transform_8(Lanes x[8], int shift) {
    Lanes half = (Lanes){0} + (1 << (shift - 1));
    Lanes z1 = (x[2] + x[6]) * 4433, z5 = (x[1] + x[3] + x[5] + x[7]) * 9633;
    Lanes t0 = ((x[0] + x[4]) << 13) + half, t1 = ((x[0] - x[4]) << 13) + half;
    Lanes t2 = z1 - x[6] * 15137, t3 = z1 + x[2] * 6270;
    Lanes z3 = z5 - (x[3] + x[7]) * 16069, z4 = z5 - (x[1] + x[5]) * 3196;
    Lanes z6 = (x[1] + x[7]) * 7373, z7 = (x[3] + x[5]) * 20995;
    Lanes even[4] = {t0 + t3, t1 + t2, t1 - t2, t0 - t3};
    Lanes odd[4] = {x[1] * 12299 - z6 + z4, x[3] * 25172 - z7 + z3, x[5] * 16819 - z7 + z4, x[7] * 2446 - z6 + z3};
    for (int i = 0; i < 4; i++) x[i] = (even[i] + odd[i]) >> shift, x[7 - i] = (even[i] - odd[i]) >> shift;
}

INLINE void transform_4(Lanes x[8], int shift) {
    Lanes t0 = (x[0] << 14) + (1 << (shift - 1)), t2 = x[2] * 15137 - x[6] * 6270;
    Lanes even[2] = {t0 + t2, t0 - t2};
    Lanes odd[2] = {x[1] * 20995 + x[3] * 7373 - x[5] * 4926 - x[7] * 4176, x[1] * 8697 - x[3] * 17799 + x[5] * 11893 - x[7] * 1730};
    for (int i = 0; i < 2; i++) x[i] = (even[i] + odd[i]) >> shift, x[3 - i] = (even[i] - odd[i]) >> shift;
}

INLINE void transform_2(Lanes x[8], int shift) {
    Lanes even = (x[0] << 15) + (1 << (shift - 1)), odd = x[1] * 29692 - x[3] * 10426 + x[5] * 6967 - x[7] * 5906;
    x[0] = (even + odd) >> shift, x[1] = (even - odd) >> shift;
}

INLINE void transpose(Lanes x[8]) {
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
        x[i] = (Lanes)_mm256_permute2x128_si256(b[i], b[i + 4], 0x20);
        x[i + 4] = (Lanes)_mm256_permute2x128_si256(b[i], b[i + 4], 0x31);
    }
}

/* A block's size x size samples. */
INLINE void transform(const int16_t block[BLOCK], int is_flat, int size, uint8_t *to, ptrdiff_t stride) {
    if (is_flat || size == 1) {
        int sample = ((block[0] + 4) >> 3) + 128;
        for (int row = 0; row < size; row++) memset(to + row * stride, least(most(sample, 0), 255), (size_t)size);
        return;
    }
    Lanes x[8];
    for (int row = 0; row < 8; row++) x[row] = (Lanes)_mm256_cvtepi16_epi32(_mm_load_si128((const __m128i *)block + row));
    /* two bits more than the samples' are kept in between; a smaller transform divides by less */
    if (size == 8) transform_8(x, 13 - 2), transpose(x), transform_8(x, 13 + 2 + 3);
    else if (size == 4) transform_4(x, 13 - 2 + 1), transpose(x), transform_4(x, 13 + 2 + 3 + 1);
    else transform_2(x, 13 - 2 + 2), transpose(x), transform_2(x, 13 + 2 + 3 + 2);
    transpose(x);
    uint8_t samples[64];
    for (int row = 0; row < size; row += 4) { /* packing clamps, and works within halves: what came apart is put together */
        __m256i upper = _mm256_packs_epi32((__m256i)x[row], (__m256i)x[row + 1]);
        __m256i lower = _mm256_packs_epi32((__m256i)x[row + 2], (__m256i)x[row + 3]);
        __m256i bytes = _mm256_add_epi8(_mm256_packs_epi16(upper, lower), _mm256_set1_epi8((char)128));
        bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        _mm256_storeu_si256((__m256i *)(samples + 8 * row), bytes);
    }
    for (int row = 0; row < size; row++) memcpy(to + row * stride, samples + 8 * row, (size_t)size);
}

/* ---- From the file to samples ---- */

/* MCUs: all rows from `top` to `bottom` and columns from `left` to `right`, which are not part of it. */
typedef struct {
    int top, left, bottom, right;
} Part;

INLINE int is_needed(const Part *part, int row, int column) { return row >= part->top && column >= part->left && column < part->right; }

INLINE int decode_mcu(Bits *in, Jpeg *jpeg, int row, int column, int is_needed) {
    int16_t block[BLOCK] __attribute__((aligned(32)));
    for (int i = 0; i < jpeg->count; i++) {
        Component *c = &jpeg->components[i];
        const Huffman *dc = &jpeg->dc[c->dc], *ac = &jpeg->ac[c->ac];
        const Quantization *by = &jpeg->quantization[c->quantization];
        for (int b = 0; b < c->h * c->v; b++) {
            int last;
            if (is_needed && c->block > 1) last = decode_block(in, dc, ac, by, &c->last_dc, 1, block);
            else last = decode_block(in, dc, ac, by, &c->last_dc, 0, block);
            if (UNLIKELY(last < 0)) return DECLINED;
            if (!is_needed) continue;
            int x = column * c->h + b % c->h, y = row * c->v + b / c->h, is_flat = last == END_OF_BLOCK;
            uint8_t *to = c->samples + (y * c->block - c->top) * (ptrdiff_t)c->stride + x * c->block - c->left;
            if (c->block == 8) transform(block, is_flat, 8, to, c->stride);
            else if (c->block == 4) transform(block, is_flat, 4, to, c->stride);
            else if (c->block == 2) transform(block, is_flat, 2, to, c->stride);
            else transform(block, is_flat, 1, to, c->stride);
        }
    }
    return DONE;
}

/* The entropy code up to the next marker, without the zero that follows every 0xff [F.1.2.3], into `to`, if it is not NULL.
 * Returns where the marker is, or the file ends. */
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

static int decode_scan(Jpeg *jpeg, const Part *part, uint8_t *segment) {
    int columns = divide_up(jpeg->width, 8 * jpeg->h), end = part->bottom * columns;
    int interval = jpeg->restart_interval ? jpeg->restart_interval : columns * divide_up(jpeg->height, 8 * jpeg->v);
    const uint8_t *from = jpeg->scan;
    for (int first = 0, restarts = 0; first < end; first += interval, restarts++) {
        if (first) {
            if (jpeg->end - from < 2 || from[0] != 0xff || from[1] != 0xd0 + (restarts - 1) % 8) return DECLINED;
            from += 2;
        }
        int mcu = first, stop = least(first + interval, end);
        while (mcu < stop && !is_needed(part, mcu / columns, mcu % columns)) mcu++;
        uint8_t *segment_end = mcu < stop ? segment : NULL;
        from = next_segment(from, jpeg->end, &segment_end);
        if (!segment_end) continue;

        Bits in = {segment, 0, 0};
        for (int i = 0; i < jpeg->count; i++) jpeg->components[i].last_dc = 0;
        int row = first / columns, column = first % columns;
        for (mcu = first; mcu < stop; mcu++) {
            if (UNLIKELY(decode_mcu(&in, jpeg, row, column, is_needed(part, row, column)))) return DECLINED;
            if (UNLIKELY(in.next - in.count / 8 > segment_end)) return DECLINED; /* it was cut short */
            if (++column == columns) column = 0, row++;
        }
    }
    return DONE;
}

/* ---- From samples to pixels. Whatever is written goes on for up to 47 bytes beyond the last pixel. ---- */

INLINE __m256i load_16(const uint8_t *from) { return _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)from)); }

/* A row of a component with a sample for each of the pixels [left, left + width): as it is, repeated, or interpolated, three quarters
 * of the nearer sample and one of the farther. There are h x v pixels to a sample. `sums` is scratch. */
INLINE void expand_row(const Component *c, int h, int v, int is_smooth, int row, int left, int width, uint16_t *sums, uint8_t *to) {
    int near = row / v, far = near;
    if (v == 2 && is_smooth) far = row % 2 ? least(near + 1, c->height - 1) : most(near - 1, 0);
    const uint8_t *a = c->samples + (near - c->top) * (ptrdiff_t)c->stride - c->left;
    const uint8_t *b = c->samples + (far - c->top) * (ptrdiff_t)c->stride - c->left;
    if (h == 1 && v == 1) {
        memcpy(to, a + left, (size_t)width);
        return;
    }
    if (!is_smooth || h == 1) {
        int bias = 1 + row % 2;
        for (int x = 0; x < width; x++)
            to[x] = v == 1 ? a[(left + x) / 2] : (uint8_t)((3 * a[left + x] + b[left + x] + bias) >> 2);
        return;
    }
    int first = left / 2, count = (left + width - 1) / 2 + 1 - first;
    sums += 16; /* there is one before the first */
    for (int i = 0; i < count; i += 16) {
        __m256i sum = load_16(a + first + i);
        if (v == 2) sum = _mm256_add_epi16(_mm256_mullo_epi16(sum, _mm256_set1_epi16(3)), load_16(b + first + i));
        _mm256_storeu_si256((__m256i *)(sums + i), sum);
    }
    int before = most(first - 1, 0), after = least(first + count, c->width - 1);
    sums[-1] = (uint16_t)(v == 2 ? 3 * a[before] + b[before] : a[before]);
    sums[count] = (uint16_t)(v == 2 ? 3 * a[after] + b[after] : a[after]);
    int shift = v == 2 ? 4 : 2;
    __m256i even_bias = _mm256_set1_epi16(v == 2 ? 8 : 1), odd_bias = _mm256_set1_epi16(v == 2 ? 7 : 2);
    to -= left % 2;
    for (int i = 0; i < count; i += 16, to += 32) {
        __m256i here = _mm256_mullo_epi16(_mm256_loadu_si256((const __m256i *)(sums + i)), _mm256_set1_epi16(3));
        __m256i even = _mm256_add_epi16(here, _mm256_loadu_si256((const __m256i *)(sums + i - 1)));
        __m256i odd = _mm256_add_epi16(here, _mm256_loadu_si256((const __m256i *)(sums + i + 1)));
        even = _mm256_srli_epi16(_mm256_add_epi16(even, even_bias), shift);
        odd = _mm256_srli_epi16(_mm256_add_epi16(odd, odd_bias), shift);
        _mm256_storeu_si256((__m256i *)to, _mm256_or_si256(even, _mm256_slli_epi16(odd, 8)));
    }
}

/* JFIF's red = y + 1.402 r, green = y - 0.344136 b - 0.714136 r, blue = y + 1.772 b, rounded. A factor is split into a whole number and
 * the rest, times 65536, which fits into sixteen bits. */
INLINE void colour_row(const uint8_t *y, const uint8_t *cb, const uint8_t *cr, int width, uint8_t *to) {
    const __m256i one = _mm256_set1_epi16(1), half = _mm256_set1_epi32(1 << 15), middle = _mm256_set1_epi16(128);
    const __m256i blue = _mm256_set1_epi16(-14942), red = _mm256_set1_epi16(26345);
    const __m256i green = _mm256_unpacklo_epi16(_mm256_set1_epi16(-22554), _mm256_set1_epi16(18734));
    /* From eight blue and eight green, and eight red: where the 16 first and the 8 last of 24 bytes come from. */
    const __m256i bg_16 = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 8, -1, 1, 9, -1, 2, 10, -1, 3, 11, -1, 4, 12, -1, 5));
    const __m256i r_16 = _mm256_broadcastsi128_si256(_mm_setr_epi8(-1, -1, 0, -1, -1, 1, -1, -1, 2, -1, -1, 3, -1, -1, 4, -1));
    const __m256i bg_8 = _mm256_broadcastsi128_si256(_mm_setr_epi8(13, -1, 6, 14, -1, 7, 15, -1, -1, -1, -1, -1, -1, -1, -1, -1));
    const __m256i r_8 = _mm256_broadcastsi128_si256(_mm_setr_epi8(-1, 5, -1, -1, 6, -1, -1, 7, -1, -1, -1, -1, -1, -1, -1, -1));
    for (int i = 0; i < width; i += 16, to += 48) {
        __m256i l = load_16(y + i), u = _mm256_sub_epi16(load_16(cb + i), middle), w = _mm256_sub_epi16(load_16(cr + i), middle);
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

static void colour(const Jpeg *jpeg, int top, int left, int height, int width, int is_smooth, uint8_t *rows, uint8_t *to) {
    const Component *c = jpeg->components;
    uint16_t *sums = (uint16_t *)rows; /* half as many as pixels, twice their size */
    uint8_t *cb = rows + width + 128, *cr = cb + width + 128;
    for (int row = top; row < top + height; row++, to += 3 * (ptrdiff_t)width) {
        const uint8_t *y = c->samples + (row - c->top) * (ptrdiff_t)c->stride + left - c->left;
        if (jpeg->count == 1) {
            for (int x = 0; x < width; x++) to[3 * x] = to[3 * x + 1] = to[3 * x + 2] = y[x];
            continue;
        }
        for (int i = 1; i < 3; i++) {
            int h = c->h * c->block / c[i].block, v = c->v * c->block / c[i].block;
            if (is_smooth && h == 2 && v == 2) expand_row(&c[i], 2, 2, 1, row, left, width, sums, i == 1 ? cb : cr);
            else if (is_smooth && h == 2) expand_row(&c[i], 2, 1, 1, row, left, width, sums, i == 1 ? cb : cr);
            else expand_row(&c[i], h, v, is_smooth, row, left, width, sums, i == 1 ? cb : cr);
        }
        colour_row(y, cb, cr, width, to);
    }
}

/* ---- The whole ---- */

/* Rows [top, top + height) and columns [left, left + width) of the image at 1 / scale (1, 2, 4 or 8) of its size, rounded up.
 *
 * pixels: bytes (height, width, 3), blue first, with room for 64 more.
 * memory: scratch of `size` bytes; 3 * (height + 64) * (width + 64) + length + 200,000 are enough.
 */
int jpeg_decode(const uint8_t *encoded, size_t length, int scale, int top, int left, int height, int width, uint8_t *pixels,
                uint8_t *memory, size_t size) {
    Jpeg *jpeg = (Jpeg *)memory;
    if (size < sizeof *jpeg || read_headers(jpeg, encoded, length)) return DECLINED;
    if (top < 0 || left < 0 || height < 1 || width < 1 || top + height > divide_up(jpeg->height, scale)
        || left + width > divide_up(jpeg->width, scale))
        return DECLINED;

    /* The MCUs with the part's pixels, and with those next to it, which its colours are interpolated from. */
    int block = 8 / scale, mcu_height = block * jpeg->v, mcu_width = block * jpeg->h;
    Part part = {most(top - 2, 0) / mcu_height, most(left - 2, 0) / mcu_width,
                 least(divide_up(top + height + 2, mcu_height), divide_up(jpeg->height, 8 * jpeg->v)),
                 least(divide_up(left + width + 2, mcu_width), divide_up(jpeg->width, 8 * jpeg->h))};
    size_t used = sizeof *jpeg;
    for (int i = 0; i < jpeg->count; i++) {
        Component *c = &jpeg->components[i];
        c->block = block;
        if (i > 0 && jpeg->h == jpeg->v && jpeg->h == 2 && block < 8) c->block *= 2;
        c->width = divide_up(jpeg->width * c->h * c->block, jpeg->h * 8);
        c->height = divide_up(jpeg->height * c->v * c->block, jpeg->v * 8);
        c->top = part.top * c->v * c->block, c->left = part.left * c->h * c->block;
        c->stride = (part.right - part.left) * c->h * c->block;
        c->samples = memory + used;
        used += (size_t)(part.bottom - part.top) * (size_t)(c->v * c->block) * (size_t)c->stride;
        if (i > 0 && c->width <= 2) return DECLINED; /* libjpeg does not interpolate these */
    }
    size_t rows = (used + 63) / 64 * 64, segment = rows + 3 * ((size_t)width + 128);
    if (segment + (size_t)(jpeg->end - jpeg->scan) + 4096 > size) return DECLINED; /* more than an MCU can read beyond the end */
    if (decode_scan(jpeg, &part, memory + segment)) return DECLINED;
    colour(jpeg, top, left, height, width, block > 1, memory + rows, pixels);
    return DONE;
}

END_OF_FILE

#endif
