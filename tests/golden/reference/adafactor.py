"""What Adafactor changes a matrix, a vector and a convolution by: the numbers in
`crates/wuerstchen-train/src/optimizer/adafactor.rs`.

`Adafactor(lr=0.1, scale_parameter=False, relative_step=False, weight_decay=0.1)` of transformers in f64, which factors
matrices as `_approx_sq_grad` does; convolutions keep their whole moment.

    pip install numpy
    python adafactor.py
"""

import numpy as np

LEARNING_RATE, WEIGHT_DECAY, EPSILON, CLIP, DECAY = 0.1, 0.1, 1e-30, 1.0, -0.8


def trained(weight, gradients):
    row, column, whole = 0.0, 0.0, 0.0
    for step, gradient in enumerate(gradients, 1):
        beta = 1 - step**DECAY
        squares = gradient**2 + EPSILON
        if weight.ndim == 2:
            row = beta * row + (1 - beta) * squares.mean(-1)
            column = beta * column + (1 - beta) * squares.mean(-2)
            update = gradient / np.sqrt(row / row.mean())[:, None] / np.sqrt(column)[None]
        else:
            whole = beta * whole + (1 - beta) * squares
            update = gradient / np.sqrt(whole)
        update /= max(1, np.sqrt((update**2).mean()) / CLIP)
        weight = weight - WEIGHT_DECAY * LEARNING_RATE * weight - LEARNING_RATE * update
    return weight


def gradient(shape, step):
    """Of very different sizes, and growing."""
    i = np.arange(np.prod(shape))
    return (np.sin(1.0 + i + 3 * step) * 10.0 ** (i % 3 - 2) * 2**step).reshape(shape)


for shape in [(2, 3), (4,), (2, 1, 2, 2)]:
    start = np.linspace(-1, 1, np.prod(shape)).reshape(shape)
    end = trained(start, [gradient(shape, step) for step in range(4)])
    print(shape, np.array2string(end.ravel(), precision=6, separator=", "))
