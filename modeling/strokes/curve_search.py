"""Which pixels a stroke touches, and where on the curve the nearest point to each of them is. No gradients.

Cubics are cut into chords. Rows of pixels within reach of a chord are found from the chord's shape, the nearest chord
of each pixel by a minimum over packed numbers (distance in the high bits, chord in the low ones), and the place on the
cubic by Newton's method. Pixels that are covered for certain are not searched further.
"""

from dataclasses import dataclass

import torch


_PAIRS_AT_ONCE = 1 << 22  # pixels of boxes and of chords in one part; bounds memory to some hundred MB
_FAR = torch.iinfo(torch.int64).max
_LOW = (1 << 32) - 1
_LONG_OUTLINE = 128  # cubics
FILL_SEGMENTS = 32  # chords of a cubic of a filled path: whether a pixel is inside is told by them


# K strokes (of all drawings), G segments, L chords, R rows of pixels near a chord, T pixels near a chord, M fragments,
# Q fragments whose distance matters


@dataclass
class Fragments:
    """Pixels that strokes touch, with strokes ascending.

    Args:
        stroke, pixel: (M,), pixel is y * width + x.
        near: (Q,) fragments whose distance matters; all others are covered entirely.
        point_index: (Q, 4), flat indices of the control points of the nearest cubic.
        t: (Q,), place of the nearest point on it.
        centre: (Q, 2), of the pixel.
        side: (Q,), 0 for lines, 1 inside of an area, -1 outside; None if there are no areas.
    """

    stroke: torch.Tensor
    pixel: torch.Tensor
    near: torch.Tensor
    point_index: torch.Tensor
    t: torch.Tensor
    centre: torch.Tensor
    side: torch.Tensor | None


def cubic_basis(t: torch.Tensor) -> torch.Tensor:
    """(…,) -> (…, 4), the weights of a cubic's control points at `t`."""
    s = 1 - t
    return torch.stack([s * s * s, 3 * s * s * t, 3 * s * t * t, t * t * t], -1)


def find_fragments(
    points: torch.Tensor,
    radii: torch.Tensor,
    num_segments: torch.Tensor,
    filled: torch.Tensor | None,
    size: tuple[int, int],
    softness: float,
    search_segments: int,
    newton_steps: int,
    even_odd: bool,
) -> Fragments:
    """Of (K, P, 2) points, (K,) radii, (K,) numbers of segments, (K,) areas or lines; see `render_strokes`."""
    lines = None if filled is None else ~filled.bool()
    parts, groups = [], [(lines, search_segments, False)]
    if lines is not None:
        # Which chords are borders takes the square of their number: long outlines get fewer for each of their cubics.
        long = num_segments > _LONG_OUTLINE
        fewer = max(4, min(FILL_SEGMENTS, _LONG_OUTLINE * FILL_SEGMENTS // points.shape[1] * 3))
        groups += [(~lines & ~long, max(search_segments, FILL_SEGMENTS), True), (~lines & long, fewer, True)]
    for chosen, chords, is_area in groups:
        if not len(points):
            continue
        which = torch.arange(len(points), device=points.device) if chosen is None else chosen.nonzero()[:, 0]
        if not len(which):
            continue
        curves = _Curves(points, radii, num_segments, which, chords, softness, is_area, size)
        for first, last in curves.parts():
            parts.append(curves.search(first, last, newton_steps, even_odd))
    return _joined(parts, points, filled is not None)


def with_closing_segments(points: torch.Tensor, num_segments: torch.Tensor, filled: torch.Tensor):
    """(K, P, 2), (K,) and (K,) areas -> (K, P + 3, 2), (K,): areas get a straight last segment back to the start, of
    no length if they are closed already. Differentiable."""
    longer = torch.cat([points, points[:, -1:].expand(-1, 3, -1)], 1).clone()
    rows = filled.nonzero()[:, 0]
    ends = 3 * num_segments.index_select(0, rows)
    start, end = points[rows, 0], points[rows, ends]
    for step in (1, 2, 3):
        longer[rows, ends + step] = end + (start - end) * (step / 3)
    return longer, num_segments + filled.to(num_segments.dtype)


class _Curves:
    """Chords of all strokes `which`, cut to what can touch the canvas."""

    def __init__(self, points, radii, num_segments, which, chords, softness, is_area, size):
        self.size, self.softness, self.chords, self.is_area = size, softness, chords, is_area
        self.which = which
        count = points.shape[1]
        segments = num_segments.index_select(0, which)
        there = torch.arange((count - 1) // 3, device=points.device) < segments[:, None]
        self.owner, number = there.nonzero().unbind(1)  # of each segment: place in `which`, and which one it is
        index = (which.index_select(0, self.owner) * count + 3 * number)[:, None]
        self.index = index + torch.arange(4, device=points.device)  # (G, 4)
        flat = points.reshape(-1, 2)
        self.control = flat.index_select(0, self.index.flatten()).view(-1, 4, 2)
        t = torch.linspace(0, 1, chords + 1, device=points.device, dtype=points.dtype)
        ends = torch.einsum("tc,gcd->gtd", cubic_basis(t), self.control)
        self.start, self.step = ends[:, :-1], ends[:, 1:] - ends[:, :-1]  # (G, S, 2)
        bends = self.control[:, :-2] - 2 * self.control[:, 1:-1] + self.control[:, 2:]
        self.sagitta = 0.75 / chords**2 * bends.norm(dim=-1).amax(1)  # of the curve over its chords
        self.radius = radii.index_select(0, which).index_select(0, self.owner)
        if is_area:
            self.radius = torch.zeros_like(self.radius)
        self.reach = self.radius + softness + self.sagitta
        self._boxes(ends)

    def _boxes(self, ends):
        """The box of pixels of each stroke that it can touch, (K,) each; areas have a column more on the right."""
        height, width = self.size
        margin = self.reach[:, None] + 0.01
        low, high = ends.amin(1) - margin, ends.amax(1) + margin
        strokes, limit = len(self.which), low.new_tensor([width, height])
        owner = self.owner[:, None].expand(-1, 2)
        low = low.new_full((strokes, 2), torch.inf).scatter_reduce(0, owner, low, "amin")
        high = high.new_full((strokes, 2), -torch.inf).scatter_reduce(0, owner, high, "amax")
        first = (low - 0.5).ceil().clamp_min(0).minimum(limit).long()
        last = (high - 0.5).floor().clamp_min(-1).minimum(limit - 1).long()
        self.box, extent = first, (last - first + 1).clamp_min(0)
        extent = extent * (extent > 0).all(1, keepdim=True)
        self.columns, self.rows = extent[:, 0] + int(self.is_area), extent[:, 1]
        self.area = self.columns * self.rows
        spread = (self.step.abs() + 2 * self.reach[:, None, None]).minimum(limit).prod(-1).sum(1)
        self.work = self.area + spread.new_zeros(strokes).index_add_(0, self.owner, spread).long()

    def parts(self):
        """First and last stroke of each part whose work fits into memory."""
        first, total, found = 0, 0, []
        for place, work in enumerate(self.work.tolist()):
            if total and total + work > _PAIRS_AT_ONCE:
                found.append((first, place))
                first, total = place, 0
            total += work
        return [*found, (first, len(self.work))]

    def search(self, first: int, last: int, newton_steps: int, even_odd: bool) -> dict[str, torch.Tensor]:
        """Fragments of the strokes first..last - 1 of `which`."""
        mine = ((self.owner >= first) & (self.owner < last)).nonzero()[:, 0]
        offsets = self.area[first:last].cumsum(0) - self.area[first:last]
        owner = self.owner.index_select(0, mine) - first
        box, columns, rows = self.box[first:last], self.columns[first:last], self.rows[first:last]
        cells = int(self.area[first:last].sum())
        chords = [t.index_select(0, mine).flatten(0, 1) for t in (self.start, self.step)]
        each = [t.index_select(0, mine).repeat_interleave(self.chords) for t in (self.reach, self.sagitta)]
        owner = owner.repeat_interleave(self.chords)
        nearest = torch.full((cells,), _FAR, device=owner.device)
        if self.is_area:
            winding = self._winding(cells, offsets, owner, (box, columns, rows), *chords)
            inside = (winding % 2 != 0) if even_odd else (winding != 0)
            real = self._borders(owner, *chords, even_odd)
            kept = real.nonzero()[:, 0]
        else:
            kept = torch.arange(len(owner), device=owner.device)
        self._nearest_chords(nearest, kept, offsets, owner, (box, columns, rows), *chords, each[0])
        touched = nearest != _FAR
        cell = (touched if not self.is_area else touched | inside).nonzero()[:, 0]
        packed = nearest.index_select(0, cell)
        reached = packed != _FAR
        chord = torch.where(reached, packed & _LOW, 0)
        distance = (packed >> 32).int().view(torch.float32).sqrt().to(self.start.dtype)
        reach, sagitta = (t.index_select(0, chord) for t in each)
        if self.is_area:
            within = inside.index_select(0, cell)
            is_near = reached & (distance <= reach)
            keep = is_near | within
        else:
            within = None
            keep = distance <= reach
            # Covered for certain: the curve is at most a sagitta farther than its chord.
            is_near = distance + sagitta >= reach - sagitta - 2 * self.softness
        row = torch.searchsorted(offsets, cell, right=True) - 1
        # Strokes without pixels share their offset with the next one; the last of them owns the cell.
        local = cell - offsets.index_select(0, row)
        line = torch.div(local, columns.index_select(0, row), rounding_mode="floor")
        column = local - line * columns.index_select(0, row)
        x, y = column + box[:, 0].index_select(0, row), line + box[:, 1].index_select(0, row)
        if self.is_area:
            keep &= column < columns.index_select(0, row) - 1
        keep = keep.nonzero()[:, 0]
        near = is_near.index_select(0, keep)
        x, y, chord = (t.index_select(0, keep) for t in (x, y, chord))
        found = {
            "stroke": self.which[first:last].index_select(0, row.index_select(0, keep)),
            "pixel": y * self.size[1] + x,
            "near": near,
        }
        chosen = near.nonzero()[:, 0]
        x, y, chord = (t.index_select(0, chosen) for t in (x, y, chord))
        centre = torch.stack([x, y], -1).to(self.start.dtype) + 0.5
        segment = mine.index_select(0, torch.div(chord, self.chords, rounding_mode="floor"))
        t = self._nearest_places(centre, segment, chord, *chords, newton_steps)
        found |= {"point_index": self.index.index_select(0, segment), "t": t, "centre": centre}
        if self.is_area:
            side = within.index_select(0, keep).index_select(0, chosen)
            found["side"] = torch.where(side, 1.0, -1.0).to(t.dtype)
        else:
            found["side"] = torch.zeros_like(t)
        return found

    # ---- rows and pixels near chords

    def _nearest_chords(self, nearest, kept, offsets, owner, boxes, start, step, reach):
        """Writes into `nearest` (cells,) the least (squared distance, chord) of each pixel, packed."""
        height, width = self.size
        box, columns, rows = boxes
        start, step = start.index_select(0, kept), step.index_select(0, kept)
        owner, reach = owner.index_select(0, kept), reach.index_select(0, kept)
        end_y = start[:, 1] + step[:, 1]
        top = (torch.minimum(start[:, 1], end_y) - reach - 0.5).ceil().clamp(0, height).long()
        low = (torch.maximum(start[:, 1], end_y) + reach - 0.5).floor().clamp(-1, height - 1).long()
        # Far from the canvas, rounding may put them outside of the stroke's box.
        corner, extent = box.index_select(0, owner), columns.index_select(0, owner) - int(self.is_area)
        top, low = torch.maximum(top, corner[:, 1]), torch.minimum(low, corner[:, 1] + rows.index_select(0, owner) - 1)
        counts = (low - top + 1).clamp_min(0)
        of = _repeated(counts)  # (R,) chord of each row
        if not len(of):
            return
        y = torch.arange(len(of), device=of.device) - (counts.cumsum(0) - counts - top).index_select(0, of)
        take = lambda values: values.index_select(0, of)  # noqa: E731
        ax, ay, ex, ey, rho = (take(t) for t in (start[:, 0], start[:, 1], step[:, 0], step[:, 1], reach))
        length = (ex * ex + ey * ey).clamp_min(1e-24)
        up = y.to(ax.dtype) + 0.5 - ay
        left, right = _row_spans(ax, up, ex, ey, rho, length)
        edge, room = take(corner[:, 0]), take(extent)
        first = torch.maximum((left - 0.5).ceil().clamp(0, width).long(), edge)
        last = torch.minimum((right - 0.5).floor().clamp(-1, width - 1).long(), edge + room - 1)
        spans = (last - first + 1).clamp_min(0)
        place = take(owner)
        base = offsets.index_select(0, place) - box[:, 0].index_select(0, place) + first
        base += (y - box[:, 1].index_select(0, place)) * columns.index_select(0, place)
        row = _repeated(spans)  # (T,) row of each pixel
        along = torch.arange(len(row), device=of.device) - (spans.cumsum(0) - spans).index_select(0, row)
        take = lambda values: values.index_select(0, row)  # noqa: E731
        # From the row's start: x - ax, and (X - A) . E / |E|^2 on the line through the chord
        x = along.to(ax.dtype)
        apart = x + take(first.to(ax.dtype) + 0.5 - ax)
        t = (apart * take(ex / length) + take(up * ey / length)).clamp_(0, 1)
        square = (apart - t * take(ex)).square_() + (take(up) - t * take(ey)).square_()
        packed = square.float().view(torch.int32).long() << 32
        packed |= take(kept.index_select(0, of))
        nearest.scatter_reduce_(0, along + take(base), packed, "amin")

    def _nearest_places(self, centre, segment, chord, start, step, newton_steps):
        """(Q,) places on the segments: the projection onto the nearest chord, and Newton's steps from there."""
        a, e = start.index_select(0, chord), step.index_select(0, chord)
        length = e.square().sum(1).clamp_min(1e-24)
        t = (((centre - a) * e).sum(1) / length).clamp(0, 1)
        t = (t + chord % self.chords) / self.chords
        low, high = (t - 1 / self.chords).clamp_min(0), (t + 1 / self.chords).clamp_max(1)
        p0, p1, p2, p3 = self.control.unbind(1)
        # B(t) = ((c3 t + c2) t + c1) t + c0
        powers = torch.cat([p0, 3 * (p1 - p0), 3 * (p0 - 2 * p1 + p2), p3 - 3 * p2 + 3 * p1 - p0], 1)
        c = powers.index_select(0, segment).unbind(1)
        for _ in range(newton_steps):
            slope, bend = 0.0, 0.0
            for axis in (0, 1):
                c0, c1, c2, c3 = c[axis], c[2 + axis], c[4 + axis], c[6 + axis]
                apart = ((c3 * t + c2) * t + c1) * t + c0 - centre[:, axis]
                first = (3 * c3 * t + 2 * c2) * t + c1
                slope = slope + apart * first
                bend = bend + apart * (6 * c3 * t + 2 * c2)
                length = first.square() if axis == 0 else length + first.square()
            # Where the curve bends away from its tangent circle, Gauss and Newton's step, which always descends
            divisor = torch.where(length + bend < 0.1 * length, length, length + bend)
            t = torch.clamp(t - slope / divisor.clamp_min(1e-12), low, high)
        return t

    # ---- areas

    def _winding(self, cells, offsets, owner, boxes, start, step):
        """(cells,) how often the outline goes around each pixel: crossings to the left of it, counted with sign.

        The crossings of a row add up to zero in its last column, so one running sum over all boxes does."""
        height, _ = self.size
        box, columns, rows = boxes
        end_y = start[:, 1] + step[:, 1]
        # A row is crossed where its centre is in [lower end, upper end)
        top = (torch.minimum(start[:, 1], end_y) - 0.5).ceil().clamp(0, height).long()
        low = (torch.maximum(start[:, 1], end_y) - 0.5).ceil().clamp(0, height).long()
        counts = low - top
        of = _repeated(counts)
        turns = torch.zeros(cells, dtype=torch.int32, device=owner.device)
        if not len(of) or not cells:
            return turns
        y = torch.arange(len(of), device=of.device) - (counts.cumsum(0) - counts - top).index_select(0, of)
        ax, ay, ex, ey = (t.index_select(0, of) for t in (*start.unbind(1), *step.unbind(1)))
        x = ax + (y.to(ax.dtype) + 0.5 - ay) / ey * ex
        place = owner.index_select(0, of)
        room, left = columns.index_select(0, place), box[:, 0].index_select(0, place)
        column = (x - 0.5).ceil().clamp(-1e9, 1e9).long() - left
        column = column.clamp_min(0).minimum(room - 1)
        line = y - box[:, 1].index_select(0, place)
        seen = ((line >= 0) & (line < rows.index_select(0, place)) & (room > 1)).nonzero()[:, 0]
        key = offsets.index_select(0, place) + line * room + column
        sign = torch.where(ey > 0, 1, -1).int()
        turns.scatter_add_(0, key.index_select(0, seen), sign.index_select(0, seen))
        return turns.cumsum(0, dtype=torch.int32)

    def _borders(self, owner, start, step, even_odd: bool) -> torch.Tensor:
        """(L,) whether inside and outside meet at a chord: within a path that overlaps itself, lines are no border."""
        real = torch.ones(len(owner), dtype=torch.bool, device=owner.device)
        for stroke in owner.unique_consecutive().tolist():
            mine = (owner == stroke).nonzero()[:, 0]
            a, e = start.index_select(0, mine), step.index_select(0, mine)
            length = e.norm(dim=1, keepdim=True)
            side = torch.stack([-e[:, 1], e[:, 0]], 1) / length.clamp_min(1e-12) * 1e-3
            answers = []
            for probe in (a + e / 2 + side, a + e / 2 - side):
                turns = []
                for some in probe.split(max(1, _PAIRS_AT_ONCE // len(mine))):
                    up = some[:, 1:] - a[:, 1]
                    crossed = (up >= 0) != (up >= e[:, 1])
                    x = a[:, 0] + up / torch.where(e[:, 1] == 0, 1, e[:, 1]) * e[:, 0]
                    left = crossed & (x <= some[:, :1])
                    turns.append((left * torch.where(e[:, 1] > 0, 1, -1)).sum(1))
                turns = torch.cat(turns)
                answers.append((turns % 2 != 0) if even_odd else (turns != 0))
            real[mine] = (answers[0] != answers[1]) & (length[:, 0] > 1e-9)
        return real


def _row_spans(ax, up, ex, ey, rho, length):
    """Left and right end of the points within `rho` of a chord from (ax, 0) by (ex, ey), at the height `up`."""
    root = (rho / length.sqrt()).clamp_max(1e12)
    left, right = torch.full_like(ax, torch.inf), torch.full_like(ax, -torch.inf)
    for x, height in ((ax, up), (ax + ex, up - ey)):  # discs around both ends
        half = rho.square() - height.square()
        there = half >= 0
        half = half.clamp_min(0).sqrt()
        left = torch.where(there, torch.minimum(left, x - half), left)
        right = torch.where(there, torch.maximum(right, x + half), right)
    safe = torch.where(ey == 0, 1, ey)
    for sign in (1, -1):  # both long sides
        share = (up - sign * root * ex) / safe
        there = (ey != 0) & (share >= 0) & (share <= 1)
        x = ax - sign * root * ey + share * ex
        left = torch.where(there, torch.minimum(left, x), left)
        right = torch.where(there, torch.maximum(right, x), right)
    return left - 1e-3, right + 1e-3


def _repeated(counts: torch.Tensor) -> torch.Tensor:
    """[2, 0, 3] -> [0, 0, 2, 2, 2]."""
    return torch.repeat_interleave(counts)


def _joined(parts: list[dict[str, torch.Tensor]], points: torch.Tensor, has_areas: bool) -> Fragments:
    """One `Fragments`, with strokes ascending."""
    if not parts:
        none = torch.zeros(0, dtype=torch.long, device=points.device)
        floats = points.new_zeros(0)
        return Fragments(none, none, none, none.view(0, 4), floats, points.new_zeros(0, 2), None)
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    near = whole.pop("near").nonzero()[:, 0]
    if has_areas:  # lines and areas were searched one after the other
        order = torch.sort(whole["stroke"], stable=True).indices
        back = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device))
        whole["stroke"], whole["pixel"] = (whole[name].index_select(0, order) for name in ("stroke", "pixel"))
        near = back.index_select(0, near)
    else:
        whole["side"] = None
    return Fragments(near=near, **whole)


__all__ = ["FILL_SEGMENTS", "Fragments", "cubic_basis", "find_fragments", "with_closing_segments"]
