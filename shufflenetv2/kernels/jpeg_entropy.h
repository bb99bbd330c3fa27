/* Decode Huffman codes to the coefficients of a block.
 *
 * `decode_block` determines the speed of the decoder. One lookup of the next bits yields a run of zeros, a coefficient and the
 * total length of both, so that a symbol costs a load and a shift.
 */

#ifndef JPEG_ENTROPY_H
#define JPEG_ENTROPY_H

#include "jpeg.h"

/* The next bits of the segment, the first one in the highest position; `count` of them are valid, at least 56 after `refill`.
 */
typedef struct {
    const uint8_t *next;
    uint64_t bits;
    int count;
} BitReader;

INLINE void refill(BitReader *in) {
    uint64_t more;
    memcpy(&more, in->next, sizeof more);
    in->bits |= __builtin_bswap64(more) >> in->count;
    in->next += (63 - in->count) >> 3;
    in->count |= 56;
}

INLINE uint32_t peek(const BitReader *in, int length) {
    return (uint32_t)(in->bits >> 1 >> (63 - length));
}

INLINE void consume(BitReader *in, uint32_t length) {
    in->bits <<= length & LENGTH_MASK;
    in->count -= (int)(length & LENGTH_MASK);
}

/* Decode a symbol that exceeds the lookahead: at most 16 bits of code and 11 of value. Return by how many coefficients it
 * advances; 0 for an invalid code. */
INLINE int read_long(BitReader *in, const Huffman *table, uint32_t entry, int is_ac, int *value) {
    int size = (int)(entry >> VALUE_SHIFT), advance = (int)(entry >> ADVANCE_SHIFT & 0xff);
    if (entry & LONG_CODE) {
        int code = (int)peek(in, 16), length = LOOKAHEAD_BITS + 1;
        while (length <= 16 && code >= table->limit[length]) length++;
        if (length > 16) return 0;
        int symbol = table->symbols[table->offset[length] + (code >> (16 - length))];
        size = symbol & 15, advance = symbol_advance(symbol, is_ac);
        consume(in, (uint32_t)length);
    } else consume(in, entry);
    *value = extend_sign(peek(in, size), size);
    consume(in, (uint32_t)size);
    return advance;
}

/* Decode the coefficients of a block and multiply them by their quantization steps; only the first (DC) coefficient unless
 * `with_ac`. Set `sum` to the sum of the absolute values. Return END_OF_BLOCK if all AC coefficients are zero, another positive
 * number if some may not be, and -1 for damaged data. [F.2.2] */
INLINE int decode_block(BitReader *in, const Huffman *dc, const Huffman *ac, const Quantization *quantization, int *last_dc,
                        int with_ac, int16_t block[BLOCK_SIZE], uint32_t *sum) {
    refill(in);
    uint32_t entry = dc->lookup[peek(in, LOOKAHEAD_BITS)];
    int difference = (int32_t)entry >> VALUE_SHIFT;
    if (UNLIKELY(entry & (VALUE_FOLLOWS | LONG_CODE))) {
        if (!read_long(in, dc, entry, 0, &difference)) return -1;
    } else consume(in, entry);
    if (with_ac)
        for (int i = 0; i < 4; i++) _mm256_store_si256((__m256i *)block + i, _mm256_setzero_si256());
    *last_dc += difference;
    if (UNLIKELY(*last_dc < -MAX_DC || *last_dc > MAX_DC)) return -1;
    int product = *last_dc * quantization->step[0];
    uint32_t total = (uint32_t)abs(product);
    block[0] = (int16_t)product;

    int k = 0; /* position of the last coefficient in file order */
    do {
        refill(in);
        /* 56 bits suffice for five lookups. The value of an end-of-block code is written to the block's padding. */
#pragma GCC unroll 5
        for (int i = 0; i < 56 / LOOKAHEAD_BITS; i++) {
            entry = ac->lookup[peek(in, LOOKAHEAD_BITS)];
            int value = (int32_t)entry >> VALUE_SHIFT;
            if (UNLIKELY(entry & (VALUE_FOLLOWS | LONG_CODE))) {
                refill(in);
                int advance = read_long(in, ac, entry, 1, &value);
                if (!advance) return -1;
                k += advance;
                product = value * quantization->step[k];
                if (with_ac) block[quantization->index[k]] = (int16_t)product, total += (uint32_t)abs(product);
                break;
            }
            consume(in, entry);
            k += entry >> ADVANCE_SHIFT & 0xff;
            product = value * quantization->step[k];
            if (with_ac) block[quantization->index[k]] = (int16_t)product, total += (uint32_t)abs(product);
            if (k >= 63) break;
        }
    } while (k < 63);
    *sum = total;
    return UNLIKELY(k > 63 && k < END_OF_BLOCK) ? -1 : k;
}

#endif
