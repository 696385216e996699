"""The plots of the page of a run, by Bokeh, which is imported late: it is in the extra `report`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ann_jax.inference.lettering import Color

_POINTS = 1000  # of a curve, at most
_LABELLED = 40  # classes whose names fit beside the matrix


def curves(title: str, unit: str, lines: Mapping[str, Mapping[int, float]], log: bool = False) -> Any:
    """A figure of curves over steps.

    Args:
        title: of the figure.
        unit: of the vertical axis.
        lines: label -> step -> value.
        log: whether the vertical axis is logarithmic.
    """
    from bokeh import models, plotting

    figure = plotting.figure(
        title=title,
        x_axis_label='step',
        y_axis_label=unit,
        y_axis_type='log' if log else 'linear',
        width=480,
        height=300,
        tools='pan,box_zoom,wheel_zoom,reset,save',
        active_scroll=None,
    )
    figure.toolbar.logo = None
    palette = _palette(len(lines))
    for (label, points), color in zip(lines.items(), palette, strict=True):
        keep = np.unique(np.linspace(0, len(points) - 1, _POINTS).round().astype(int))
        data = {'x': np.array(list(points))[keep], 'y': np.array(list(points.values()), np.float64)[keep]}
        source = models.ColumnDataSource(data, name=label)
        # Names of runs are text, not fields of the data.
        legend = {'legend_label': label} if len(lines) > 1 else {}
        figure.line('x', 'y', source=source, color=color, line_width=2, name=label, **legend)
        if len(keep) < 40:
            figure.scatter('x', 'y', source=source, color=color, size=5, name=label, **legend)
    figure.add_tools(models.HoverTool(tooltips=[('', '$name'), ('step', '@x'), (unit, '@y{0.0000}')]))
    if len(lines) > 1:
        figure.legend.click_policy = 'hide'
        figure.legend.label_text_font_size = '8pt'
        figure.legend.spacing = 8
        figure.add_layout(figure.legend[0], 'below')
        figure.legend.ncols = 2
        figure.height += 12 * len(lines)
    return figure


def confusion(title: str, classes: Sequence[str], matrix: np.ndarray, side: int = 640) -> Any:
    """A heat map of a confusion matrix (K, K), rows normalised; hovering tells classes and counts.

    It is about `side` pixels wide and high.
    """
    from bokeh import models, palettes, plotting

    count = len(classes)
    total = matrix.sum(1, keepdims=True)
    share = np.divide(matrix, total, out=np.zeros(matrix.shape), where=total > 0)
    figure = plotting.figure(
        title=title,
        x_axis_label='predicted class',
        y_axis_label='true class',
        x_range=(0, count),
        y_range=(count, 0),
        width=side + 160,
        height=side + 120,
        tools='pan,box_zoom,wheel_zoom,reset,save',
        active_scroll=None,
    )
    figure.toolbar.logo = None
    colors = models.LinearColorMapper(palette=palettes.Viridis256, low=0, high=1)
    # Row 0 of an image is at its bottom, which is at the top of this axis.
    source = models.ColumnDataSource(
        {'share': [share.astype(np.float32)], 'count': [matrix.astype(np.float64)]}
    )
    renderer = figure.image('share', 0, 0, count, count, source=source, color_mapper=colors)
    figure.add_layout(models.ColorBar(color_mapper=colors, title='share of the true class'), 'right')
    name = lambda axis: models.CustomJSHover(
        args={'classes': list(classes)},
        code=f'return classes[Math.floor(special_vars.{axis})] ?? ""',
    )
    tooltips = [
        ('truth', '$y{custom}'), ('prediction', '$x{custom}'), ('pixels', '@count{0,0}'),
        ('share', '@share{0.00%}'),
    ]  # fmt: skip
    figure.add_tools(
        models.HoverTool(
            renderers=[renderer], tooltips=tooltips, formatters={'$x': name('x'), '$y': name('y')}
        )
    )
    if count <= _LABELLED:
        ticks = [i + 0.5 for i in range(count)]
        for axis in (figure.xaxis, figure.yaxis):
            axis.ticker = ticks
            axis.major_label_overrides = dict(zip(ticks, classes, strict=True))
        figure.xaxis.major_label_orientation = 0.9
    figure.grid.visible = False
    return figure


def embedded(figures: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """Scripts for the head of a page, which load nothing, and each figure as HTML."""
    from bokeh import embed, resources

    if not figures:
        return '', {}
    script, parts = embed.components(dict(figures))
    library = resources.Resources(mode='inline', components=['bokeh'], minified=True).render_js()
    return library + script, parts


def _palette(count: int) -> list[str]:
    from bokeh import palettes

    # But its yellow, which is faint on white.
    colors = [color for color in palettes.Colorblind8 if color != '#F0E442']
    return [colors[i % len(colors)] for i in range(count)]


def css(color: Color) -> str:
    """A colour as in CSS."""
    return '#' + bytes(color).hex()
