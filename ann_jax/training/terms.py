"""The terms of a loss and their factors, as a config names them."""

import math

from ann_jax.errors import ConfigError, unknown

ENTROPIES = 'cross_entropy', 'ohem'
PIXELWISE = *ENTROPIES, 'focal'
REGIONS = 'dice', 'tversky', 'lovasz'
NAMES = *PIXELWISE, *REGIONS
MOST = 1000.0  # factor


def parse(text: str) -> tuple[tuple[str, float], ...]:
    """Parses terms such as 'ohem:1,dice:0.5'; a name alone has the factor 1.

    Raises:
        ConfigError: a name is unknown or occurs twice, or a factor is not a number above 0.
    """
    terms: dict[str, float] = {}
    for item in filter(None, map(str.strip, text.split(','))):
        name, colon, number = (part.strip() for part in item.partition(':'))
        if name not in NAMES:
            raise ConfigError(f'loss.terms={text!r}: {unknown("term", name, NAMES)}')
        if name in terms:
            raise ConfigError(f'loss.terms={text!r} names {name} twice: give it once, with one factor')
        try:
            factor = float(number) if colon else 1.0
        except ValueError:
            factor = math.nan
        if not 0 < factor <= MOST:
            raise ConfigError(
                f'loss.terms={text!r}: the factor of {name} must be a number above 0, at most {MOST:g}, as '
                f'in {name}:0.5'
            )
        terms[name] = factor
    return tuple(terms.items())


def chosen(text: str, ohem: bool) -> tuple[tuple[str, float], ...]:
    """The terms of the main loss: those named, or else OHEM or plain cross-entropy.

    Raises:
        ConfigError: see `parse`.
    """
    return parse(text) or (('ohem' if ohem else 'cross_entropy', 1.0),)


def check(text: str, ohem: bool, label_smoothing: float, boundary_weight: float) -> None:
    """Refuses settings that would have no effect on the main loss.

    Raises:
        ConfigError: see `parse`; or there is no term that the setting acts on.
    """
    names = [name for name, _ in chosen(text, ohem)]
    for key, value, off, acting in (
        ('label_smoothing', label_smoothing, 0, ENTROPIES),
        ('boundary_weight', boundary_weight, 1, PIXELWISE),
    ):
        if value != off and not set(names) & set(acting):
            raise ConfigError(
                f'loss.{key}={value:g} acts on {", ".join(acting)}, none of which is in loss.terms={text!r}: '
                f'add one, or set loss.{key}={off}'
            )
