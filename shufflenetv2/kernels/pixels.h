/* The compiled functions on pixels. Python's bindings are derived from these prototypes (bindings.py).
 *
 * Images are bytes (height, width, 3) in BGR order. The functions that return int return 0 if they wrote their result, and 1
 * if they decline the task: the caller then uses OpenCV. `scratch` is memory of `scratch_size` bytes.
 */

#ifndef PIXELS_H
#define PIXELS_H

#include <stddef.h>
#include <stdint.h>

/* Return whether this processor can run the other functions. */
int is_supported(void);

/* Return the checksum of the header that the library was compiled with. */
int header_checksum(void);

/* Decode rows [top, top + height) and columns [left, left + width) of a JPEG at 1 / scale of its size, rounded up.
 *
 * scale: 1, 2, 4 or 8.
 * pixels: height * width * 3 bytes for the result and 64 more, which may be overwritten.
 * scratch: 3 * (height + 64) * (width + 64) + length + 200,000 bytes suffice.
 */
int jpeg_decode(const uint8_t *encoded, size_t length, int scale, int top, int left, int height, int width, uint8_t *pixels,
                uint8_t *scratch, size_t scratch_size);

/* Verify that the data of a JPEG is intact: that no block of its image is missing, and that all codes are valid.
 *
 * scratch: 30,000 bytes suffice, and for a progressive JPEG 8 bytes more for each block of 8 x 8 samples.
 *
 * Returns 0 if it is, 2 if it is damaged, and 1 if that is not known, because the headers are invalid or the file is of a rare
 * kind: arithmetic coding, lossless, hierarchical, more than eight bits.
 */
int jpeg_verify(const uint8_t *encoded, size_t length, uint8_t *scratch, size_t scratch_size);

/* Resize an image with bilinear interpolation, then flip it.
 *
 * stride: distance of the rows of `pixels` in bytes.
 * scratch: 40 * (new_width + 8) + 3 * width + 16 bytes suffice.
 */
int resize_bilinear(const uint8_t *pixels, ptrdiff_t stride, int height, int width, uint8_t *resized, int new_height,
                    int new_width, int hflip, int vflip, uint8_t *scratch, size_t scratch_size);

/* Resize an image with bilinear interpolation, and compute only rows [top, top + part_height) and columns
 * [left, left + part_width) of the result, which has new_height x new_width pixels.
 *
 * pixels: rows [given_top, given_top + given_height) and columns [given_left, given_left + given_width) of the image, which has
 *     height x width pixels; they have to include all that the part depends on.
 * scratch: 40 * (part_width + 8) + 3 * given_width + 16 bytes suffice.
 */
int resize_bilinear_part(const uint8_t *pixels, ptrdiff_t stride, int height, int width, int given_top, int given_left,
                         int given_height, int given_width, uint8_t *part, int new_height, int new_width, int top, int left,
                         int part_height, int part_width, uint8_t *scratch, size_t scratch_size);

/* Map each of `count` pixels to own * pixel + shared * grey(pixel) + mean * (mean grey value of all pixels).
 *
 * jittered: may be `pixels`.
 */
int jitter(const uint8_t *pixels, int count, double own, double shared, double mean, uint8_t *jittered);

/* Decode, resize, flip and jitter a rectangle of a JPEG: the three functions above in one call.
 *
 * scratch: 3 * height * width + 128 bytes, and as many as the other functions need.
 */
int jpeg_crop_resize(const uint8_t *encoded, size_t length, int scale, int top, int left, int height, int width,
                     uint8_t *resized, int new_height, int new_width, int hflip, int vflip, double own, double shared,
                     double mean, uint8_t *scratch, size_t scratch_size);

#endif
