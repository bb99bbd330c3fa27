/* Verify that the entropy-coded data of a JPEG is intact: that every block of every scan can be decoded from it.
 *
 * libjpeg, which OpenCV and Pillow use, fills what it cannot decode with grey, and reports only a warning without the name of a
 * file. This decoder keeps no pixels. It covers what libjpeg decodes with Huffman codes and eight bits: sequential and
 * progressive, one or several scans, up to four components. It is used for the few files that `jpeg_decode` declines.
 */

#include "pixels.h"

#include <string.h>

#ifdef __GNUC__

enum { INTACT = 0, UNKNOWN = 1, DAMAGED = 2 };
enum { MAX_COMPONENTS = 4, MAX_FACTOR = 4, LOOKAHEAD = 9 };
enum { MAX_SURPLUS = 64 }; /* bytes after the last MCU that are no reason to doubt the header */
enum { MAX_SCANS = 256 };  /* encoders write about ten; a file with many would take minutes to decode */

typedef struct {
    uint16_t lookup[1 << LOOKAHEAD]; /* length << 8 | symbol, by the next bits; 0: the code is longer */
    int32_t limit[17];               /* first 16-bit code that does not begin with a code of at most this length */
    int32_t offset[17];              /* index of a symbol minus its code, for codes of this length */
    uint8_t symbols[256];
    int is_defined;
} Table;

typedef struct {
    int id, h, v;
    int columns, rows;  /* in blocks */
    int is_coded;       /* whether a scan has been decoded */
    int precision[64];  /* progressive: number of low bits of each coefficient that are missing; -1: no bits are known */
    uint64_t *non_zero; /* progressive: for each block, which coefficients are not zero */
} Component;

typedef struct {
    const uint8_t *at, *end;
    uint64_t bits;      /* the next bits, the first one in the highest position */
    int count, missing; /* number of `bits`; how many of them are beyond the end of the data */
} Reader;

typedef struct {
    int width, height, is_progressive, restart_interval;
    int count, h, v, scans;
    Component components[MAX_COMPONENTS];
    Table dc[4], ac[4];
} Verifier;

/* A scan: the components, their tables, the coefficients [first, last] and their bits [G.1.1.1]. */
typedef struct {
    int count, first, last, high, low;
    Component *components[MAX_COMPONENTS];
    const Table *dc[MAX_COMPONENTS], *ac[MAX_COMPONENTS];
    int run; /* number of blocks that end before their next coefficient */
} Scan;

static int divide_up(int a, int b) {
    return (a + b - 1) / b;
}

static int read_u16(const uint8_t *at) {
    return at[0] << 8 | at[1];
}

/* Fill `bits`; beyond the next marker with zeros. A byte 0xff of data is followed by a zero byte [F.1.2.3]. */
static void refill(Reader *in) {
    while (in->count <= 56) {
        uint64_t byte = 0;
        const uint8_t *next = in->at;
        if (next < in->end && *next == 0xff) {
            while (next < in->end && *next == 0xff) next++;
            next = next < in->end && *next == 0 ? next + 1 : NULL;
            byte = 0xff;
        } else if (next < in->end) byte = *next++;
        else next = NULL;
        if (next) in->at = next;
        else byte = 0, in->missing += 8;
        in->bits |= byte << (56 - in->count);
        in->count += 8;
    }
}

static int is_exhausted(const Reader *in) {
    return in->count < in->missing;
}

static uint32_t read_bits(Reader *in, int length) {
    if (!length) return 0;
    if (in->count < length) refill(in);
    uint32_t value = (uint32_t)(in->bits >> (64 - length));
    in->bits <<= length, in->count -= length;
    return value;
}

/* Return the next symbol; -1 for an invalid code. */
static int read_symbol(Reader *in, const Table *table) {
    if (in->count < 16) refill(in);
    int entry = table->lookup[in->bits >> (64 - LOOKAHEAD)], length = entry >> 8, symbol = entry & 255;
    if (!entry) {
        int code = (int)(in->bits >> 48);
        for (length = LOOKAHEAD + 1; length <= 16 && code >= table->limit[length];) length++;
        if (length > 16) return -1;
        symbol = table->symbols[table->offset[length] + (code >> (16 - length))];
    }
    in->bits <<= length, in->count -= length;
    return symbol;
}

static int decode_sequential(Reader *in, const Table *dc, const Table *ac) {
    int symbol = read_symbol(in, dc);
    if (symbol < 0 || symbol > 15) return DAMAGED;
    read_bits(in, symbol);
    for (int k = 1; k < 64;) {
        if ((symbol = read_symbol(in, ac)) < 0) return DAMAGED;
        int run = symbol >> 4, size = symbol & 15;
        if (!size && run < 15) break;
        k += run + 1;
        if (k > 64) return DAMAGED;
        read_bits(in, size);
    }
    return INTACT;
}

/* [G.1.2.2] */
static int decode_first_ac(Reader *in, Scan *scan, uint64_t *non_zero) {
    if (scan->run) {
        scan->run--;
        return INTACT;
    }
    for (int k = scan->first; k <= scan->last; k++) {
        int symbol = read_symbol(in, scan->ac[0]), run = symbol >> 4, size = symbol & 15;
        if (symbol < 0) return DAMAGED;
        if (!size && run < 15) {
            scan->run = (1 << run) - 1 + (int)read_bits(in, run);
            break;
        }
        k += run;
        if (k > scan->last) return DAMAGED;
        if (size) *non_zero |= 1ull << k;
        read_bits(in, size);
    }
    return INTACT;
}

/* Return a mask of coefficients [first, end). */
static uint64_t mask_of(int first, int end) {
    return first < end ? (end == 64 ? ~0ull : (1ull << end) - 1) >> first << first : 0;
}

/* Skip one bit for each coefficient of `mask`. */
static void skip_refinement(Reader *in, uint64_t mask) {
    int count = __builtin_popcountll(mask);
    for (; count > 32; count -= 32) read_bits(in, 32);
    read_bits(in, count);
}

/* [G.1.2.3] */
static int refine_ac(Reader *in, Scan *scan, uint64_t *non_zero) {
    int k = scan->first, end = scan->last + 1;
    while (!scan->run && k < end) {
        int symbol = read_symbol(in, scan->ac[0]), run = symbol >> 4, size = symbol & 15;
        if (symbol < 0 || size > 1) return DAMAGED;
        if (!size && run < 15) {
            scan->run = (1 << run) + (int)read_bits(in, run);
            break;
        }
        read_bits(in, size);
        /* The new coefficient is the one after `run` others that were zero; those between that were not are refined. */
        uint64_t zeros = ~*non_zero & mask_of(k, end);
        while (run-- && zeros) zeros &= zeros - 1;
        int next = zeros ? __builtin_ctzll(zeros) : end;
        skip_refinement(in, *non_zero & mask_of(k, next));
        if (next == end && size) return DAMAGED;
        if (size) *non_zero |= 1ull << next;
        k = next + 1;
    }
    if (scan->run) {
        skip_refinement(in, *non_zero & mask_of(k, end));
        scan->run--;
    }
    return INTACT;
}

static int decode_block(Reader *in, const Verifier *jpeg, Scan *scan, int index, int block) {
    if (!jpeg->is_progressive) return decode_sequential(in, scan->dc[index], scan->ac[index]);
    if (scan->first) {
        uint64_t *non_zero = scan->components[0]->non_zero + block;
        return scan->high ? refine_ac(in, scan, non_zero) : decode_first_ac(in, scan, non_zero);
    }
    if (scan->high) {
        read_bits(in, 1);
        return INTACT;
    }
    int symbol = read_symbol(in, scan->dc[index]);
    if (symbol < 0 || symbol > 15) return DAMAGED;
    read_bits(in, symbol);
    return INTACT;
}

/* Return the position of the next marker, without the fill bytes before it; `end` if there is none. */
static const uint8_t *next_marker(const uint8_t *at, const uint8_t *end) {
    for (; end - at >= 2; at++)
        if (at[0] == 0xff && at[1] != 0 && at[1] != 0xff) return at;
    return end;
}

/* Return whether so much data follows the last MCU that the header must claim a smaller size than the image has. Encoders may
 * fill up with a few bytes, or with many that are equal, and some encode a row of MCUs beyond the image.
 *
 * row: average number of bytes in a row of MCUs. */
static int has_surplus(const uint8_t *from, const uint8_t *to, ptrdiff_t row) {
    return to - from > MAX_SURPLUS + row && memcmp(from, from + 1, (size_t)(to - from - 1));
}

/* Decode the entropy-coded data of a scan, and advance `*at` to the marker that follows. */
static int decode_data(Verifier *jpeg, Scan *scan, const uint8_t **at, const uint8_t *end) {
    int columns = divide_up(jpeg->width, 8 * jpeg->h), rows = divide_up(jpeg->height, 8 * jpeg->v);
    int is_interleaved = scan->count > 1;
    if (!is_interleaved) columns = scan->components[0]->columns, rows = scan->components[0]->rows;
    Reader in = {*at, end, 0, 0, 0};
    int until_restart = jpeg->restart_interval, restarts = 0;
    for (int row = 0; row < rows; row++)
        for (int column = 0; column < columns; column++) {
            if (jpeg->restart_interval && !until_restart) {
                const uint8_t *marker = next_marker(in.at, end);
                if (marker == end || marker[1] != 0xd0 + restarts % 8) return DAMAGED;
                in = (Reader){marker + 2, end, 0, 0, 0};
                until_restart = jpeg->restart_interval, restarts++, scan->run = 0;
            }
            until_restart--;
            for (int i = 0; i < scan->count; i++) {
                int blocks = is_interleaved ? scan->components[i]->h * scan->components[i]->v : 1;
                for (int b = 0; b < blocks; b++) {
                    int result = decode_block(&in, jpeg, scan, i, row * columns + column);
                    if (result || is_exhausted(&in)) return DAMAGED;
                }
            }
        }
    const uint8_t *last = in.at - (in.count - in.missing) / 8, *stop = next_marker(in.at, end);
    while (end - stop >= 2 && stop[1] >= 0xd0 && stop[1] <= 0xd7) stop = next_marker(stop + 2, end);
    int is_surplus = has_surplus(last, stop, (last - *at) / rows);
    *at = stop;
    return is_surplus ? DAMAGED : INTACT;
}

/* Check which coefficients a scan of a progressive JPEG codes, and note their precision. [G.1.1.1] */
static int check_progression(const Scan *scan) {
    int is_dc = scan->first == 0;
    if (scan->last > 63 || scan->low > 13 || (is_dc && scan->last) || (!is_dc && scan->count > 1) || scan->first > scan->last)
        return UNKNOWN; /* libjpeg refuses such a file */
    if (scan->high && scan->low != scan->high - 1) return UNKNOWN;
    for (int i = 0; i < scan->count; i++)
        for (int k = scan->first; k <= scan->last; k++) {
            int *precision = &scan->components[i]->precision[k];
            if ((!is_dc && scan->components[i]->precision[0] < 0) || scan->high != (*precision < 0 ? 0 : *precision))
                return DAMAGED;
            *precision = scan->low;
        }
    return INTACT;
}

static int read_scan(Verifier *jpeg, const uint8_t *body, const uint8_t **at, const uint8_t *end) {
    Scan scan = {0};
    scan.count = body[0];
    if (*at - body != 4 + 2 * scan.count || scan.count < 1 || scan.count > jpeg->count) return UNKNOWN;
    const uint8_t *parameters = body + 1 + 2 * scan.count;
    scan.first = parameters[0], scan.last = parameters[1], scan.high = parameters[2] >> 4, scan.low = parameters[2] & 15;
    int blocks = 0;
    for (int i = 0; i < scan.count; i++) {
        int dc = body[2 + 2 * i] >> 4, ac = body[2 + 2 * i] & 15;
        for (int c = 0; c < jpeg->count; c++)
            if (jpeg->components[c].id == body[1 + 2 * i]) scan.components[i] = &jpeg->components[c];
        if (!scan.components[i] || dc > 3 || ac > 3) return UNKNOWN;
        scan.dc[i] = &jpeg->dc[dc], scan.ac[i] = &jpeg->ac[ac];
        int needs_dc = !jpeg->is_progressive || (!scan.first && !scan.high), needs_ac = !jpeg->is_progressive || scan.first;
        if ((needs_dc && !scan.dc[i]->is_defined) || (needs_ac && !scan.ac[i]->is_defined)) return UNKNOWN;
        scan.components[i]->is_coded = 1;
        blocks += scan.components[i]->h * scan.components[i]->v;
    }
    if (scan.count > 1 && blocks > 10) return UNKNOWN;
    int result = jpeg->is_progressive ? check_progression(&scan) : INTACT;
    if (result) return result;
    if (++jpeg->scans > MAX_SCANS) return DAMAGED;
    return decode_data(jpeg, &scan, at, end);
}

/* [C.2] */
static int read_tables(Verifier *jpeg, const uint8_t *at, const uint8_t *end) {
    while (at < end) {
        int is_ac = *at >> 4, id = *at & 15, total = 0;
        if (is_ac > 1 || id > 3 || end - at < 17) return UNKNOWN;
        const uint8_t *counts = at, *symbols = at + 17;
        for (int length = 1; length <= 16; length++) total += counts[length];
        if (total > 256 || end - symbols < total) return UNKNOWN;
        Table *table = is_ac ? &jpeg->ac[id] : &jpeg->dc[id];
        memset(table, 0, sizeof *table);
        memcpy(table->symbols, symbols, (size_t)total);
        int code = 0, index = 0;
        for (int length = 1; length <= 16; length++, code <<= 1) {
            table->offset[length] = index - code;
            for (int i = 0; i < counts[length]; i++, code++, index++) {
                if (code >= 1 << length) return UNKNOWN;
                for (int rest = 0; length <= LOOKAHEAD && rest < 1 << (LOOKAHEAD - length); rest++)
                    table->lookup[(code << (LOOKAHEAD - length)) + rest] = (uint16_t)(length << 8 | symbols[index]);
            }
            table->limit[length] = code << (16 - length);
        }
        table->is_defined = 1;
        at = symbols + total;
    }
    return INTACT;
}

static int read_frame(Verifier *jpeg, int marker, const uint8_t *at, const uint8_t *end, uint8_t *scratch,
                      size_t scratch_size) {
    if (jpeg->count || end - at < 6) return UNKNOWN;
    int count = at[5];
    jpeg->height = read_u16(at + 1), jpeg->width = read_u16(at + 3), jpeg->is_progressive = marker == 0xc2;
    if (at[0] != 8 || !jpeg->height || !jpeg->width || count < 1 || count > MAX_COMPONENTS || end - at != 6 + 3 * count)
        return UNKNOWN;
    jpeg->count = count;
    for (int i = 0; i < count; i++) {
        Component *c = &jpeg->components[i];
        c->id = at[6 + 3 * i], c->h = at[7 + 3 * i] >> 4, c->v = at[7 + 3 * i] & 15;
        if (c->h < 1 || c->h > MAX_FACTOR || c->v < 1 || c->v > MAX_FACTOR) return UNKNOWN;
        if (c->h > jpeg->h) jpeg->h = c->h;
        if (c->v > jpeg->v) jpeg->v = c->v;
    }
    for (int i = 0; i < count; i++) {
        Component *c = &jpeg->components[i];
        c->columns = divide_up(divide_up(jpeg->width * c->h, jpeg->h), 8);
        c->rows = divide_up(divide_up(jpeg->height * c->v, jpeg->v), 8);
        for (int k = 0; k < 64; k++) c->precision[k] = -1;
        if (!jpeg->is_progressive) continue;
        size_t size = sizeof(uint64_t) * (size_t)c->columns * (size_t)c->rows;
        if (size > scratch_size) return UNKNOWN;
        c->non_zero = memset(scratch, 0, size);
        scratch += size, scratch_size -= size;
    }
    return INTACT;
}

/* Return whether every component has been decoded, and every coefficient that has been begun has all its bits. */
static int is_complete(const Verifier *jpeg) {
    for (int i = 0; i < jpeg->count; i++) {
        const Component *c = &jpeg->components[i];
        if (!c->is_coded) return 0;
        for (int k = 0; k < 64 && jpeg->is_progressive; k++)
            if (c->precision[k] > 0 || c->precision[0] < 0) return 0;
    }
    return jpeg->count > 0;
}

int jpeg_verify(const uint8_t *encoded, size_t length, uint8_t *scratch, size_t scratch_size) {
    size_t used = (sizeof(Verifier) + 63) / 64 * 64;
    if (length < 4 || encoded[0] != 0xff || encoded[1] != 0xd8 || scratch_size < used) return UNKNOWN;
    Verifier *jpeg = memset(scratch, 0, sizeof(Verifier));
    const uint8_t *at = encoded + 2, *end = encoded + length;
    while ((at = next_marker(at, end)) != end) {
        int marker = at[1], result = INTACT;
        at += 2;
        if (marker == 0x01 || (marker >= 0xd0 && marker <= 0xd7)) continue;
        if (marker == 0xd9) break;
        if (end - at < 2 || read_u16(at) < 2 || read_u16(at) > end - at) break;
        const uint8_t *body = at + 2;
        at += read_u16(at);
        if (marker == 0xc0 || marker == 0xc1 || marker == 0xc2)
            result = read_frame(jpeg, marker, body, at, scratch + used, scratch_size - used);
        else if (marker == 0xc4) result = read_tables(jpeg, body, at);
        else if (marker >= 0xc3 && marker <= 0xcf) return UNKNOWN; /* arithmetic coding, lossless, hierarchical */
        else if (marker == 0xda) result = at - body < 6 ? UNKNOWN : read_scan(jpeg, body, &at, end);
        else if (marker == 0xdd && at - body == 2) jpeg->restart_interval = read_u16(body);
        if (result) return result;
    }
    return is_complete(jpeg) ? INTACT : jpeg->scans ? DAMAGED : UNKNOWN;
}

#endif
