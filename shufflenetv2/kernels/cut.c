/* All that becomes of a JPEG on its way to a training batch, in one call: a thread that returns to the interpreter between the
 * steps waits for its turn at it each time. `jpeg.py` calls it.
 */

#include "pixels.h"

#ifdef IS_COMPILED

int jpeg_cut(const uint8_t *encoded, size_t length, int scale, int top, int left, int height, int width, uint8_t *to, int new_height,
             int new_width, int is_mirrored, int is_upside_down, double own, double shared, double mean, uint8_t *memory, size_t size) {
    int is_unchanged = own == 1 && shared == 0 && mean == 0;
    if (height < 1 || width < 1 || !(is_unchanged || is_mixture(own, shared, mean))) return DECLINED;
    size_t used = ((size_t)height * (size_t)width * 3 + 64 + 63) / 64 * 64;
    if (size < used) return DECLINED;
    uint8_t *scratch = memory + used;
    if (jpeg_decode(encoded, length, scale, top, left, height, width, memory, scratch, size - used)) return DECLINED;
    if (resize_bilinear(memory, 3 * (ptrdiff_t)width, height, width, to, new_height, new_width, is_mirrored, is_upside_down, scratch, size - used))
        return DECLINED;
    return is_unchanged ? DONE : jitter(to, new_height * new_width, own, shared, mean, to);
}

END_OF_FILE

#endif
