/* Types that the parts of the JPEG decoder share.
 *
 * Numbers in brackets are sections and figures of ITU-T T.81. A component is luma, blue or red chroma; a sample is one value
 * of a component; an MCU (minimum coded unit) is the group of 8 x 8 blocks of all components that covers one area.
 */

#ifndef JPEG_H
#define JPEG_H

#include "simd.h"

enum { LOOKAHEAD_BITS = 11, LOOKAHEAD_SIZE = 1 << LOOKAHEAD_BITS };

/* With larger values than those of regular files, libjpeg's results depend on the sizes of its variables, which are 16 bits. If
 * the absolute values of a block have a sum of at most SMALL_SUM, nothing exceeds 16 bits: a transform enlarges values by a
 * factor of at most 5.66 = 4 * sqrt(2) between its two steps. */
enum { MAX_DC = 1 << 14, MAX_FLAT = 4000, SMALL_SUM = 5786, MAX_SUM = INT16_MAX };

/* An end-of-block code advances past every coefficient. Coefficients beyond the 64 of a block are written to padding. */
enum { END_OF_BLOCK = 128, UNUSED_INDEX = 64, BLOCK_SIZE = 80 };

/* Fields of an entry of `Huffman.lookup`, from the lowest bit: total length of code and value in bits (6), whether the value
 * exceeds the lookahead (1), whether the code exceeds the lookahead (1), number of coefficients to advance (8), and the value
 * or, if it exceeds the lookahead, its length (16). */
enum { LENGTH_MASK = 0x3f, VALUE_FOLLOWS = 0x40, LONG_CODE = 0x80, ADVANCE_SHIFT = 8, VALUE_SHIFT = 16 };

typedef struct {
    uint32_t lookup[LOOKAHEAD_SIZE]; /* by the next LOOKAHEAD_BITS bits */
    int32_t limit[17];               /* first 16-bit code that does not begin with a code of at most this length */
    int32_t offset[17];              /* index of a symbol minus its code, for codes of this length */
    uint8_t symbols[256];
    int is_defined;
} Huffman;

typedef struct {
    int16_t step[256];  /* of the k-th coefficient in file order [A.6]; more than 64 entries, for end-of-block codes */
    uint8_t index[256]; /* of the k-th coefficient in the block */
    int is_defined;
} Quantization;

typedef struct {
    int id, h, v, quantization, dc, ac;
    int block;         /* side of a decoded block in samples: 8 / scale, or twice that where this avoids interpolation */
    int width, height; /* in decoded samples */
    uint8_t *samples;  /* of the decoded MCUs; the first one is at (top, left) */
    int stride, top, left;
    int last_dc;
} Component;

typedef struct {
    int width, height;    /* in pixels */
    int count;            /* number of components */
    int h, v;             /* blocks of luma per MCU */
    int restart_interval; /* MCUs between restart markers; 0: no restart markers */
    int has_jfif;
    int adobe_transform; /* 1 + the colour transform of the Adobe segment; 0: no such segment */
    Component components[3];
    Quantization quantization[4];
    Huffman dc[4], ac[4];
    const uint8_t *scan, *end; /* begin of the entropy-coded data; end of the file */
} Jpeg;

INLINE int divide_up(int a, int b) {
    return (a + b - 1) / b;
}

/* Return the value that `length` bits encode. [F.12] */
INLINE int extend_sign(uint32_t bits, int length) {
    return bits < 1u << length >> 1 ? (int)bits - (1 << length) + 1 : (int)bits;
}

/* Return by how many coefficients a symbol advances in its block; 0 for an invalid symbol, 1 for a valid DC symbol. [F.1.2] */
INLINE int symbol_advance(int symbol, int is_ac) {
    int run = symbol >> 4, length = symbol & 15;
    if (!is_ac) return symbol <= 11;
    if (length == 0) return run == 0 ? END_OF_BLOCK : run == 15 ? 16 : 0;
    return length <= 10 ? run + 1 : 0;
}

/* Parse the segments up to the entropy-coded data. Return DONE, or DECLINED for a damaged or unsupported file. */
int jpeg_read_headers(Jpeg *jpeg, const uint8_t *at, size_t length);

#endif
