"""Count the partitions into which unsupported nodes cut a graph.

The algorithm is onnxruntime's (`CreateSupportedPartitionNodeGroups`, core/providers/partitioning_utils.cc): nodes are
visited as they become ready; a piece grows as long as taken nodes are ready without one of the nodes that it feeds and
that are not taken; those wait until the piece is closed.
"""

from collections import defaultdict, deque
from collections.abc import Sequence

from hvlc.lint.graphs import Node


def count_partitions(nodes: Sequence[Node], taken: Sequence[bool]) -> int:
    """Number of pieces.

    Args:
        nodes: of the main graph, without those that are computed before.
        taken: whether the target takes each.
    """
    makers = {name: place for place, node in enumerate(nodes) for name in node.writes if name}
    feeds: dict[int, set[int]] = defaultdict(set)
    for place, node in enumerate(nodes):
        for name in node.reads:
            if name in makers:
                feeds[makers[name]].add(place)
    waiting = [0] * len(nodes)
    for readers in feeds.values():
        for reader in readers:
            waiting[reader] += 1
    ready = deque(place for place, count in enumerate(waiting) if not count)
    later: deque[int] = deque()
    border: set[int] = set()
    pieces, open_piece = 0, False
    while ready or later:
        if not ready:
            open_piece, border = False, set()
            ready, later = later, ready
            continue
        place = ready.popleft()
        if not taken[place] and place in border:
            border.discard(place)
            later.append(place)
            continue
        if taken[place]:
            pieces += not open_piece
            open_piece = True
            border.discard(place)
            border |= feeds[place]
        for reader in feeds[place]:
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
    return pieces
