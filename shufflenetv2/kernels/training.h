/* The compiled functions of a training step on a CPU. Python's bindings are derived from these prototypes (bindings.py).
 *
 * Tensors are float32 and channels-last: the channels of a pixel adjoin, and an image is its rows of pixels. `pixels` counts
 * the pixels of all images of a batch. Every function returns 0, or 1 if it could not allocate memory.
 *
 * `statistics` is the (5, channels) tensor of one batch normalization: mean, variance, 1 / sqrt(variance + eps), scale, shift;
 * a normalized value is scale * x + shift.
 */

#ifndef TRAINING_H
#define TRAINING_H

#include <stddef.h>

/* Return whether this processor can run the other functions. */
int is_supported(void);

/* Return the checksum of the header that the library was compiled with. */
int header_checksum(void);

/* Compute the batch statistics of x and, unless y is NULL, y = ReLU(batch norm(x)).
 *
 * y_stride: distance of the pixels of y in floats.
 */
int norm_forward(const float *x, ptrdiff_t pixels, ptrdiff_t channels, const float *weight, const float *bias, float eps,
                 float *statistics, float *y, ptrdiff_t y_stride, int threads);

/* Compute the gradients of x, weight and bias from the gradient of y.
 *
 * y_grad_stride: distance of the pixels of y_grad in floats.
 */
int norm_backward(const float *y_grad, ptrdiff_t y_grad_stride, const float *x, ptrdiff_t pixels, ptrdiff_t channels,
                  const float *statistics, float *x_grad, float *weight_grad, float *bias_grad, int threads);

/* Copy every second channel of `source`, which has 2 * channels, to `target`.
 *
 * target_stride: distance of the pixels of target in floats.
 */
int gather(const float *source, ptrdiff_t pixels, ptrdiff_t channels, float *target, ptrdiff_t target_stride, int threads);

/* Copy the channels of `even` and `odd` to `target` alternately.
 *
 * even_stride: distance of the pixels of even in floats.
 */
int interleave(const float *even, ptrdiff_t even_stride, const float *odd, ptrdiff_t pixels, ptrdiff_t channels, float *target,
               int threads);

/* Compute z, the 3 x 3 depthwise convolution (padding 1) of x or, unless x_statistics is NULL, of ReLU(batch norm(x)); and the
 * batch statistics of z.
 *
 * weight: (9, channels).
 */
int depthwise_forward(const float *x, ptrdiff_t images, ptrdiff_t height, ptrdiff_t width, ptrdiff_t channels, ptrdiff_t stride,
                      const float *x_statistics, const float *weight, float *z, const float *norm_weight,
                      const float *norm_bias, float eps, float *z_statistics, int threads);

/* Compute the gradients of x, weight and, if x was normalized, of its batch norm's weight and bias.
 *
 * The gradient of z is z_grad - slope * (z - z_mean): the two terms of batch norm's gradient that depend on the pixel.
 */
int depthwise_backward(const float *z_grad, const float *z, const float *z_mean, const float *slope, const float *x,
                       ptrdiff_t images, ptrdiff_t height, ptrdiff_t width, ptrdiff_t channels, ptrdiff_t stride,
                       const float *x_statistics, const float *weight, float *x_grad, float *weight_grad,
                       float *norm_weight_grad, float *norm_bias_grad, int threads);

#endif
