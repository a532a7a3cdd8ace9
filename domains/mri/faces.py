"""Whether a head scan's face was removed, so that filling does not invent one.

Tools that remove faces set everything in front of a cut to one number. Skin is blurred over a voxel or two,
and a cut is not: right before it lies that number exactly, right behind it tissue. So heads are looked at
from the front, and compared with how they look from the other sides: a brain without its skull ends sharply
everywhere, an intact head nowhere, and a head without its face at the front alone, along a
plane, below the brow.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from .intensity import look
from .placing import laid_back, upright

_HEAD = 100.0  # mm; whatever is smaller along an axis is not a head
_SHARP_FRONT, _SHARP_ELSEWHERE = 0.04, 0.03  # shares of the lines of sight
_AREA = 800.0  # mm2 of flat cut
_FLAT = 3.0  # mm from the plane
_VOLUME = 15_000.0  # mm3 removed behind the foremost point of what is left
_TRIALS = 300
_FRONT, _OTHERS = (1, True), [(1, False), (2, True), (0, True), (0, False)]  # axis, from its far end


def defaced(values: np.ndarray, affine: np.ndarray) -> np.ndarray | None:
    """The region that was removed in front of a cut, or None when the face is there (or never was).

    A face that was blurred or replaced, or removed before the image was resampled, is not recognised.

    Args:
        values: (X, Y, Z) finite. affine: (4, 4).

    Returns:
        (X, Y, Z) bool, what lies before the cut; the image's own grid.
    """
    turned, spacing = upright(values, affine)
    removed = _removed(np.ascontiguousarray(turned), spacing)
    return None if removed is None else np.ascontiguousarray(laid_back(removed, affine))


def _removed(values: np.ndarray, spacing: np.ndarray) -> np.ndarray | None:
    """The same for axes that run right, anterior, superior."""
    blank = _blank(values)
    if blank is None or np.ptp(values) == 0 or (np.array(values.shape) * spacing < _HEAD).any():
        return None
    found = look(values)
    head = values > found.dark + 0.12 * (found.bright - found.dark)
    tissue = 0.5 * float(np.median(values[head])) if head.any() else 0.0
    _, sharp, hit = _seen_from(values, head, *_FRONT, blank, tissue)
    if sharp.sum() < 0.5 * _SHARP_FRONT * hit.sum():  # most images are done with here
        return None
    head = _largest(head)
    extent = np.array([np.ptp(np.flatnonzero(head.any(tuple({0, 1, 2} - {a})))) for a in range(3)])
    if (extent * spacing < 0.75 * _HEAD).any():
        return None
    depth, sharp, hit = _seen_from(values, head, *_FRONT, blank, tissue)
    others = [_seen_from(values, head, *view, blank, tissue) for view in _OTHERS]
    front = sharp.sum() / max(hit.sum(), 1)
    # The median: an image that was padded after it cut the head ends sharply on one more side.
    elsewhere = float(np.median([s.sum() / max(h.sum(), 1) for _, s, h in others]))
    if front < max(_SHARP_FRONT, 4 * elsewhere) or elsewhere > _SHARP_ELSEWHERE:
        return None
    flat = _on_a_plane(depth, sharp, spacing)
    if flat.sum() * spacing[0] * spacing[2] < _AREA:
        return None
    middle = np.average(np.arange(values.shape[2]), weights=head.sum((0, 1)))
    if np.average(np.arange(values.shape[2]), weights=flat.sum(0)) > middle + 20 / spacing[2]:
        return None
    return _before(depth, sharp, values == blank, head, spacing)


def _blank(values: np.ndarray) -> float | None:
    """The number that much of the image is, exactly."""
    some = values.reshape(-1)[:: max(1, values.size // 300_000)]
    found, counts = np.unique(some, return_counts=True)
    most = int(counts.argmax())
    return float(found[most]) if counts[most] > 0.03 * some.size else None


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest piece of a mask."""
    pieces, count = ndimage.label(ndimage.binary_opening(mask))
    if count == 0:
        return mask
    return np.asarray(pieces == np.bincount(pieces.ravel())[1:].argmax() + 1)


def _seen_from(
    values: np.ndarray, head: np.ndarray, axis: int, far: bool, blank: float, tissue: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Along each line of sight: index of the head's first voxel, whether it begins sharply, whether it is met
    within the image at all."""
    v, h = np.moveaxis(values, axis, 0), np.moveaxis(head, axis, 0)
    if far:
        v, h = v[::-1], h[::-1]
    first = h.argmax(0)
    hit = h.any(0) & (first > 1)
    at = np.clip(first, 1, len(h) - 1)
    i, j = np.indices(first.shape)
    sharp = hit & (v[at - 1, i, j] == blank) & (v[at, i, j] > tissue)
    return (len(h) - 1 - first if far else first), sharp, hit


def _on_a_plane(depth: np.ndarray, sharp: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """The sharp lines of sight that end on the plane that holds most of them (RANSAC, Fischler 1981)."""
    x, z = np.nonzero(sharp)
    points = np.stack([x * spacing[0], depth[x, z] * spacing[1], z * spacing[2]], 1)
    out = np.zeros_like(sharp)
    if len(points) < 50:
        return out
    rng = np.random.default_rng(0)
    some = points[rng.permutation(len(points))[:2000]]
    best, found = 0, None
    for _ in range(_TRIALS):
        a, b, c = some[rng.choice(len(some), 3, replace=False)]
        normal = np.cross(b - a, c - a)
        length = np.linalg.norm(normal)
        if length < 100:  # three points nearly in line, or close together
            continue
        near = int((np.abs((some - a) @ (normal / length)) < _FLAT).sum())
        if near > best:
            best, found = near, (a, normal / length)
    if found is None or best < 0.35 * len(some):
        return out
    out[x, z] = np.abs((points - found[0]) @ found[1]) < _FLAT
    return out


def _before(
    depth: np.ndarray, sharp: np.ndarray, blank: np.ndarray, head: np.ndarray, spacing: np.ndarray
) -> np.ndarray | None:
    """What is blank before the cut and in cavities that it opened; None when it is too little for a face."""
    lines = ndimage.binary_closing(np.pad(sharp, 8), iterations=5)[8:-8, 8:-8]
    lines = ndimage.binary_opening(ndimage.binary_fill_holes(lines))
    along = np.arange(head.shape[1])[None, :, None]
    # Within an opened cavity the first tissue lies deep; the cut is where the lines around meet it.
    nearest = ndimage.distance_transform_edt(~sharp, return_distances=False, return_indices=True)
    removed = lines[:, None, :] & (along > depth[tuple(nearest)][:, None, :]) & blank
    foremost = np.flatnonzero(head.any((0, 2)))[-1]
    volume = removed[:, : foremost + 1].sum() * float(np.prod(spacing))
    return removed if volume > _VOLUME else None
