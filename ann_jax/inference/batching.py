"""Images that are computed together, while their results keep the order of the images."""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, TypeVar

Item = TypeVar('Item')


def in_batches(
    items: Iterable[Item],
    kind: Callable[[Item], Hashable],
    run: Callable[[list[Item]], list[Any]],
    size: int,
) -> Iterator[tuple[Item, Any]]:
    """Runs items of one kind together, `size` at a time; one that waits too long for others is run alone.

    So each kind needs two programs at most, and no item is computed for nothing. No more than 3 * size items
    are held: a batch that was run is given while the next one is collected.

    Args:
        items: in the order in which they are given with their results.
        kind: of an item; None if it must be run alone.
        run: a list of items of one kind -> their results.
        size: items of a batch.
    """
    waiting: deque[list[Any]] = deque()  # [item, list of its result], in order
    groups: dict[Hashable, list[list[Any]]] = {}  # those without a result, in order

    def finish(entries):
        results = run([item for item, _ in entries])
        for (_, result), value in zip(entries, results, strict=True):
            result.append(value)

    def first():
        """The first item and its result, which may not have been computed yet."""
        entry = waiting.popleft()
        if not entry[1]:
            finish([groups[kind(entry[0])].pop(0)])
        return entry[0], entry[1][0]

    for item in items:
        entry = [item, []]
        waiting.append(entry)
        key = kind(item)
        group = groups.setdefault(key, [])
        group.append(entry)
        if key is None or len(group) == size:
            finish(groups.pop(key))
        if len(waiting) > 2 * size:
            yield first()
        while len(waiting) > size and waiting[0][1]:
            yield first()
    while waiting:
        yield first()
