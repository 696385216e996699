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
    """Runs items of one kind together, `size` at a time; what fills no batch is run one by one.

    So each kind needs two programs at most, and no item is computed for nothing. No more than 3 * size items
    are held: a batch that was run is given while the next one is collected.

    Args:
        items: in the order in which they are given with their results.
        kind: of an item; None if it must be run alone.
        run: a list of items of one kind -> their results.
        size: items of a batch.
    """
    waiting: deque[list[Any]] = deque()  # [item, list of its result], in order
    groups: dict[Hashable, list[list[Any]]] = {}

    def finish(group, together):
        for part in [group] if together else [[entry] for entry in group]:
            results = run([item for item, _ in part])
            for (_, result), value in zip(part, results, strict=True):
                result.append(value)

    for item in items:
        entry = [item, []]
        waiting.append(entry)
        key = kind(item)
        group = groups.setdefault(key, [])
        group.append(entry)
        if key is None or len(group) == size:
            finish(groups.pop(key), key is not None)
        if len(waiting) > 2 * size and not waiting[0][1]:  # others fill their batches, but not the first's
            finish(groups.pop(kind(waiting[0][0])), False)
        while waiting and waiting[0][1] and len(waiting) > size:
            item, (result,) = waiting.popleft()
            yield item, result
    for group in groups.values():
        finish(group, False)
    while waiting:
        item, (result,) = waiting.popleft()
        yield item, result
