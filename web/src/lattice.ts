// The deformation grid: lines of a regular lattice, drawn where the registration takes them, as in the report.

import type { Described } from "./scene";

const LINES = 20; // along the longer side of a slice

/** A slice on a canvas: on both sides the pixel of share 0 of the volume and the (signed) pixels from there to share 1. */
export interface Tile {
  across: 0 | 1 | 2;
  axes: [0 | 1 | 2, 0 | 1 | 2];
  x: { start: number; whole: number };
  y: { start: number; whole: number };
  /** Of the axis across, where the slice is. */
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
    return [tile.x.start + tile.x.whole * x, tile.y.start + tile.y.whole * y];
  }

  pen.save();
  pen.beginPath();
  pen.rect(tile.x.start, tile.y.start, tile.x.whole, tile.y.whole);
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
