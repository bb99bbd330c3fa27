/* Fuzz the JPEG decoder under MemorySanitizer, which stops where a result depends on memory that was never written.
 *
 * An input is that of fuzz/jpeg.py: a JPEG file, with five bytes after its end that select the scale and the crop. Python and
 * OpenCV cannot run under MemorySanitizer, so that nothing is compared here.
 */

#include "pixels.h"

#include <stdlib.h>

enum { PARAMETERS = 5, MAX_PIXELS = 200000 };

/* Return the size of the image in the frame header, height << 16 | width; 0 if there is none. */
static uint32_t find_size(const uint8_t *data, size_t length) {
    for (size_t at = 0; at + 9 < length; at++)
        if (data[at] == 0xff && data[at + 1] >= 0xc0 && data[at + 1] <= 0xc2)
            return (uint32_t)data[at + 5] << 24 | (uint32_t)data[at + 6] << 16 | (uint32_t)data[at + 7] << 8 | data[at + 8];
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length) {
    if (length < PARAMETERS) return 0;
    const uint8_t *parameters = data + length - PARAMETERS;
    uint32_t size = find_size(data, length -= PARAMETERS);
    int scale = 1 << parameters[0] % 4, height = (int)(size >> 16), width = (int)(size & 0xffff);
    if (!height || !width || height > MAX_PIXELS / width) return 0;
    int scaled_height = (height + scale - 1) / scale, scaled_width = (width + scale - 1) / scale;
    int top = parameters[1] * scaled_height / 256, left = parameters[2] * scaled_width / 256;
    int rows = 1 + parameters[3] * (scaled_height - top - 1) / 255,
        columns = 1 + parameters[4] * (scaled_width - left - 1) / 255;
    size_t scratch_size = 3 * (size_t)(rows + 64) * (size_t)(columns + 64) + length + 200000;
    size_t count = 3 * (size_t)rows * (size_t)columns, sum = 0;
    uint8_t *scratch = malloc(scratch_size), *pixels = malloc(count + 64);
    if (!jpeg_decode(data, length, scale, top, left, rows, columns, pixels, scratch, scratch_size))
        for (size_t i = 0; i < count; i++) sum += pixels[i];
    static volatile int is_black;
    if (!sum) is_black = 1; /* the branch depends on all pixels */
    free(scratch);
    free(pixels);
    scratch_size = 30000 + 32 * (size_t)(height / 8 + 8) * (size_t)(width / 8 + 8);
    scratch = malloc(scratch_size);
    int verdict = jpeg_verify(data, length, scratch, scratch_size);
    free(scratch);
    return verdict > 2;
}
