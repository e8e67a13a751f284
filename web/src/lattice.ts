// The deformation grid: lines of a regular lattice, drawn where the registration takes them, as in the report.

import type { Described } from "./scene";

const LINES = 20; // along the longer side of a slice

/** Part of a canvas that shows a slice: pixels per share (0..1) of the two axes, and where share 0 lies. */
export interface Tile {
  across: 0 | 1 | 2;
  axes: [0 | 1 | 2, 0 | 1 | 2];
  left: number; top: number; width: number; height: number;
  /** Whether the shares of the axes grow to the right and downwards. */
  right: boolean; down: boolean;
  share: number;
}

/** @param field (3, X, Y, Z) in mm along the axes of the grid. */
export function draw(pen: CanvasRenderingContext2D, tile: Tile, field: Float32Array, of: Described): void {
  const { shape, spacing_mm: spacing } = of.deformation;
  const [a, b] = tile.axes;
  const extent = of.shape.map((count, axis) => count * of.spacing_mm[axis]!);
  const slice = Math.min(shape[tile.across]! - 1, Math.round(inField(tile.share, tile.across)));
  const step = Math.max(extent[a]!, extent[b]!) / LINES;

  function inField(share: number, axis: number): number {
    return (share * extent[axis]! - of.spacing_mm[axis]! / 2) / spacing[axis]!;
  }
  function moved(i: number, j: number): [number, number] {
    const index = [0, 0, 0];
    index[tile.across] = slice; index[a] = i; index[b] = j;
    const at = (index[0]! * shape[1] + index[1]!) * shape[2] + index[2]!;
    const whole = shape[0] * shape[1] * shape[2];
    const [x, y] = ([[a, i], [b, j]] as const).map(([axis, n]) =>
      (n * spacing[axis]! + of.spacing_mm[axis]! / 2 + field[axis * whole + at]!) / extent[axis]!) as [number, number];
    return [
      tile.left + tile.width * (tile.right ? x : 1 - x),
      tile.top + tile.height * (tile.down ? y : 1 - y),
    ];
  }

  pen.save();
  pen.beginPath();
  pen.rect(tile.left, tile.top, tile.width, tile.height);
  pen.clip();
  pen.beginPath();
  for (const [axis, other, point] of [
    [a, b, (line: number, knot: number) => moved(line, knot)],
    [b, a, (line: number, knot: number) => moved(knot, line)],
  ] as const) {
    for (const line of every(shape[axis]!, spacing[axis]!, step)) {
      for (let knot = 0; knot < shape[other]!; knot++) pen[knot ? "lineTo" : "moveTo"](...point(line, knot));
    }
  }
  pen.stroke();
  pen.restore();
}

/** Indices about ``step`` mm apart, none twice. */
export function every(count: number, spacing: number, step: number): number[] {
  const found = new Set<number>();
  for (let mm = step / 2; mm < count * spacing; mm += step) found.add(Math.min(count - 1, Math.floor(mm / spacing)));
  return [...found];
}
