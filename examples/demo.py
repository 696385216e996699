"""A page to try networks on: drop an image, see its classes, click on a pixel and see what it attends to.

pip install -e '.[demo]'
python examples/demo.py runs/scenes runs/other
"""

import sys

import numpy as np

import ann_jax

TOP = 3  # anchors that are outlined
WIDE = 640  # pixels of the longer side that small pictures are enlarged to


def overlay(result):
    """The classes over the image, (H, W, 3) uint8, and the share of pixels of each class that occurs."""
    shares = np.bincount(result.ids.ravel(), minlength=len(result.classes)) / result.ids.size
    return result.overlay(), {
        name: float(share) for name, share in zip(result.classes, shares, strict=True) if share
    }


def looks(result, block, y, x):
    """What the pixel in row y, column x attends to: a picture (H, W, 3) uint8, and the share of each level.

    Bright is where it looks; the anchors with the largest weights are outlined, and the pixel is marked.
    """
    attention = result.attention()[block]
    heat = attention.heat(y, x)
    # Against five times the mean at least: what looks everywhere alike should not seem sharp.
    heat = (heat / max(heat.max(), 5 / heat.size))[..., None]
    grey = result.image.mean(-1, keepdims=True)
    picture = (0.5 * (1 - heat) * grey + heat * np.array([255, 190, 60])).astype(np.uint8)
    for top, left, bottom, right in attention.boxes[np.argsort(attention.at(y, x))[-TOP:]]:
        for edge in (np.s_[top, left:right], np.s_[bottom - 1, left:right]):
            picture[edge] = 64, 224, 255
        for edge in (np.s_[top:bottom, left], np.s_[top:bottom, right - 1]):
            picture[edge] = 64, 224, 255
    arm = max(2, result.ids.shape[1] // 60)
    picture[max(y - arm, 0) : y + arm + 1, x] = picture[y, max(x - arm, 0) : x + arm + 1] = 255
    levels = {f'{n} x {n}' if n else 'pixels': share for n, share in attention.shares(y, x).items()}
    return picture, levels


def enlarged(picture):
    """A small picture with every pixel several times, to be clicked on, and how many times."""
    times = max(1, WIDE // max(picture.shape[:2]))
    return picture.repeat(times, 0).repeat(times, 1), times


def page(runs):
    """The page of some runs, as Gradio's `Blocks`.

    Args:
        runs: names of runs or weights folders; each is opened when it is first chosen.
    """
    import gradio

    segmenters = {}

    def segment(run, image, pixel):
        if image is None:
            return None, None, None, gradio.update(choices=[], value=None), None, None
        try:
            if run not in segmenters:
                segmenters[run] = ann_jax.load(run)
            result = segmenters[run](image)
            blocks = list(result.attention())
        except (ann_jax.ConfigError, ann_jax.DataError) as error:
            raise gradio.Error(str(error)) from error
        drawn, shares = overlay(result)
        block = blocks[-1] if blocks else None
        choice = gradio.update(choices=blocks, value=block)
        return result, enlarged(drawn)[0], shares, choice, *show(result, block, pixel)

    def click(result, block, event: gradio.SelectData):
        times = enlarged(result.image)[1]
        pixel = event.index[1] // times, event.index[0] // times
        return pixel, *show(result, block, pixel)

    def show(result, block, pixel):
        if not (result and block and pixel) or any(np.array(pixel) >= result.ids.shape):
            return None, None
        picture, levels = looks(result, block, *pixel)
        return enlarged(picture)[0], levels

    with gradio.Blocks(title='ann_jax', analytics_enabled=False) as blocks:
        result, pixel = gradio.State(), gradio.State()
        with gradio.Row():
            run = gradio.Dropdown(runs, value=runs[0], label='run')
            block = gradio.Radio([], label='attention of')
        with gradio.Row():
            image = gradio.Image(type='numpy', label='image')
            drawn = gradio.Image(label='classes: click on a pixel', interactive=False, format='png')
            heat = gradio.Image(label='what it attends to', interactive=False, format='png')
        with gradio.Row():
            shares = gradio.Label(label='share of the pixels', num_top_classes=6, show_heading=False)
            levels = gradio.Label(label='share of each level of the pyramid', show_heading=False)
        for changed in (image, run):
            changed.change(segment, [run, image, pixel], [result, drawn, shares, block, heat, levels])
        drawn.select(click, [result, block], [pixel, heat, levels])
        block.input(show, [result, block, pixel], [heat, levels])
    return blocks


if __name__ == '__main__':
    if not sys.argv[1:]:
        sys.exit('error: name a run: python examples/demo.py runs/scenes')
    page(sys.argv[1:]).launch()
